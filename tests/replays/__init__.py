"""One function for each kind of fixture, named as its file; each compares a case with our code and raises if it differs."""
