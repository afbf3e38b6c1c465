"""Which of the descriptions that a language model wrote give a task's answers away."""

from collections import Counter
from collections.abc import Sequence

from hyperlora.describe import words
from training.tasks import Task

LEAK_WORDS = 6  # so many words of a longer answer, in a row, give it away
LABEL_SHARE = 0.05  # an answer to so many of a task's questions is a class
FUNCTION_WORDS = frozenset(
    words(  # stand in any sentence, so that their being there tells nothing
        "a about after all an and any are as at be been before but by can could did do does each for from had has "
        "have he her him his how i if in into is it its may me more most my no nor not of off on one or our out "
        "over she should so some such than that the their them then there these they this those to too up us was "
        "we were what when where which who whom whose why will with would yes you your"
    )
)


def labels(task: Task) -> set[str]:
    """The task's classes: answers to several of its questions, one in twenty at least, as compared by `leaks`.

    A description that names them ("is the review positive?") gives no question's answer away.
    """
    counts = Counter(" ".join(words(example["output"])) for example in task.train)
    return {answer for answer, n in counts.items() if n > 1 and n >= LABEL_SHARE * len(task.train)}


def leaks(description: str, answers: Sequence[str], classes: set[str] = frozenset()) -> bool:
    """Whether an answer stands in the description, whatever the case and the punctuation.

    Of a longer answer, six words in a row do. Not counted are classes, single characters ("a", "7") and answers
    of nothing but function words ("in the").
    """
    text = f" {' '.join(words(description))} "
    for answer in answers:
        own = words(answer)
        if len("".join(own)) < 2 or FUNCTION_WORDS.issuperset(own) or " ".join(own) in classes:
            continue
        n = min(len(own), LEAK_WORDS)
        if any(f" {' '.join(own[i : i + n])} " in text for i in range(len(own) - n + 1)):
            return True
    return False
