"""One function for each kind of fixture; each compares a case with our code and raises if it differs."""
