"""Whether an answer loops, as small models' greedy answers do."""

import re
from collections import Counter

LINES = 3  # a line that is there so often
TIMES = 3  # words that come so often, one time right after another
LONGEST = 30  # words of one such round
LEAST = 10  # words of all rounds together: "very, very, very" is no loop


def loops(text: str) -> bool:
    """Whether a line is there three times, or up to 30 words come three times in a row and are ten or more together.

    Case is aside, and so are marks around words and what is before a line's first letter: numbers and bullets of lists.
    """
    lines = Counter(re.sub(r"^[\W\d_]+", "", line.casefold()).strip() for line in text.splitlines())
    if any(times >= LINES for line, times in lines.items() if line):
        return True
    words = [word.strip(".,;:!?\"'*-") for word in text.casefold().split()]
    for size in range(1, min(LONGEST, len(words) // TIMES) + 1):
        same = 0  # words in a row that are those of the round before
        for i in range(size, len(words)):
            same = same + 1 if words[i] == words[i - size] else 0
            if same >= (TIMES - 1) * size and same + size >= LEAST:
                return True
    return False
