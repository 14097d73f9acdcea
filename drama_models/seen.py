"""Which strings came before, such as ids of documents, at 12 to 24 bytes for each instead of more than a hundred."""

from __future__ import annotations

from array import array

FIRST_PLACES = 1 << 12  # a power of two, as every later size
UNSIGNED = (1 << 64) - 1
FULLEST = 2 / 3  # part of the places that is taken before the table grows
FREE = 0


class SeenStrings:
    """A set of the strings' 64-bit hashes, in one table with open addressing.

    A string that is not found is new for certain. One that is found may be another of the same hash, about once in
    forty million sets of a million; who must be sure looks where the strings came from.
    """

    def __init__(self) -> None:
        self._places = array("Q", bytes(8 * FIRST_PLACES))
        self._taken = 0

    def add(self, text: str) -> bool:
        """Remember a string; whether it, or another of its hash, was there before."""
        number = hash(text) & UNSIGNED or 1  # of Python's own, so nobody can make ids that fall together
        place = self._place(number)
        if self._places[place] != FREE:
            return True
        self._places[place] = number
        self._taken += 1
        if self._taken > FULLEST * len(self._places):
            self._grow()
        return False

    def _place(self, number: int) -> int:
        """Where a hash is, or the free place where it belongs."""
        places, last = self._places, len(self._places) - 1
        place = number & last
        while places[place] not in (FREE, number):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        numbers = self._places
        self._places = array("Q", bytes(2 * 8 * len(numbers)))
        for number in numbers:
            if number != FREE:
                self._places[self._place(number)] = number
