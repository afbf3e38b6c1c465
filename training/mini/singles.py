"""The tasks of the mini suite that stand alone: numbers, grammar, spelling, questions about a text."""

from collections.abc import Callable
from random import Random

from . import words as w
from .inputs import apply, digits, items, number_list, pair, sentence, small, word

V = "aeiou"
OUT = "{write|output|give|return|print}"
SINGLES: list[tuple[str, str, Callable[[Random], tuple[str, str]], list[str], list[str]]] = []


def task(
    name: str,
    make: Callable[[Random], str],
    do: Callable[[str], str],
    plain: list[str],
    varied: list[str],
    group: str = "trained",
) -> None:
    """Add a task. Its templates are `plain`, then `varied`; `suite.suite` says which of them are trained on."""
    SINGLES.append((name, group, apply(make, do), plain, varied))


def one_of(choices: Callable[[], tuple[str, ...]]) -> Callable[[Random], str]:
    return lambda rng: choices()[int(len(choices()) * rng.random() ** 1.5)]


def vowel_biased_sentence(rng: Random) -> str:
    return " ".join(
        rng.choice(V) + w.random_word(rng, 2, 5) if rng.random() < 0.4 else w.random_word(rng, 2, 6) for _ in range(4)
    )


# Numbers

task(
    "sum",
    pair,
    lambda t: str(sum(map(int, t.split()))),
    [
        "{add|add up|sum} the two numbers",
        f"{OUT} the {{sum|total}} of the {{two|given}} numbers",
        "What is the {sum|total} of the two numbers?",
        "{compute|calculate|find} the sum of the numbers",
        f"{OUT} the first number plus the second number",
        "Given two numbers, {add them|return their sum|add one to the other}.",
        "{apply|use} addition to the two numbers",
    ],
    [
        "what do both numbers make together",
        "put the two numbers together by addition and state the outcome",
        "Tell me how much the two numbers come to when added.",
        "determine the total of both values",
        "Two numbers arrive, their sum goes back.",
    ],
)
task(
    "diff",
    lambda r: (lambda a, b: f"{max(a, b)} {min(a, b)}")(r.randint(0, 99), r.randint(0, 99)),
    lambda t: str(int(t.split()[0]) - int(t.split()[1])),
    [
        "subtract the second number from the first",
        f"{OUT} the first number minus the second {{number|one|}}",
        f"{OUT} the difference {{of|between}} the {{two|}} numbers",
        "What is the first number minus the second {number|one}?",
        "{compute|calculate|find} the difference between the two numbers",
        "Given two numbers, {subtract|take away} the second from the first.",
        f"{OUT} the result of {{subtracting|taking}} the second number from the first",
    ],
    [
        "by how much is the first number above the second one",
        "deduct the second value from the first value",
        "Tell me what remains of the first number once the second is taken off.",
        "determine how far apart the two numbers are",
        "The answer is number one less number two.",
    ],
)
for name, pick, big, said in (
    ("max", max, "{larger|bigger|greater}", "{largest|biggest|greatest|highest}"),
    ("min", min, "smaller", "{smallest|lowest|least}"),
):
    task(
        f"{name}_of_two",
        pair,
        lambda t, f=pick: str(f(map(int, t.split()))),
        [
            f"{OUT} the {big} of the two numbers",
            f"Which of the two numbers is {big}?",
            f"{{pick|choose|select|find}} the {big} {{number|of both numbers}}",
            f"compare the two numbers and {OUT} the {big} one",
            f"Given two numbers, {OUT} the {big} one.",
        ],
        [
            f"decide which number is the {big} one and state it",
            f"Of both values, tell me the {big}.",
            f"weigh one number against the other and keep the {big}",
            f"name the {big} value of the pair",
        ],
    )
    task(
        f"{name}_of_list",
        number_list,
        lambda t, f=pick: str(f(map(int, t.split(", ")))),
        [
            f"{OUT} the {said} number {{in|of}} the list",
            f"{{find|pick|select|choose}} the {said} {{number|value}} {{in the list|of all|}}",
            f"What is the {said} number {{in the list|of all}}?",
            f"{OUT} the {{maximum|max}} of the numbers"
            if name == "max"
            else f"{OUT} the {{minimum|min}} of the numbers",
            f"Given a list of numbers, {OUT} the {said} one.",
        ],
        [
            f"search the listing for its {said} number",
            f"name the {said} value among those numbers",
            f"Tell me which of these numbers is the {said}.",
            f"report the {said} entry of the numeric list",
        ],
    )
task(
    "double",
    small,
    lambda t: str(2 * int(t)),
    [
        "{double|duplicate the value of} the number",
        f"{OUT} {{twice|two times|double}} the number",
        "multiply the number by {two|2}",
        "What is {twice|two times} the number?",
        "Given a number, {double it|multiply it by two}.",
    ],
    [
        "the number should become two times as large",
        "calculate what you get when the number is taken twice",
        "scale the number up by a factor of two",
        "Answer with the doubled number.",
    ],
)
task(
    "half",
    lambda r: str(2 * r.randint(0, 99)),
    lambda t: str(int(t) // 2),
    [
        "{halve|divide by two|halve} the number",
        f"{OUT} {{half|one half}} of the number",
        "divide the number by {two|2}",
        "What is half of the number?",
        "Given an even number, {halve it|divide it by two}.",
    ],
    [
        "split the number into two equal parts and state one of them",
        "calculate fifty percent of the number",
        "cut the number in half",
        "Answer with the halved number.",
    ],
)
task(
    "even_odd",
    digits,
    lambda t: "odd" if int(t) % 2 else "even",
    [
        "{say|write|tell|decide} whether the number is {even or odd|odd or even}",
        "Is the number {even or odd|odd or even}?",
        f"{OUT} even if the number is even and odd if it is odd",
        "classify the number as even or odd",
        "{determine|check} if the number is even or odd",
    ],
    [
        "find out the parity of the number",
        "label the number: odd or even",
        "Judge if what I send is an even or an odd number.",
        "reply even or odd depending on the number",
    ],
)
task(
    "number_to_words",
    lambda r: str(r.randint(0, 99) if r.random() < 0.25 else r.randint(100, 9999)),
    lambda t: w.number_in_words(int(t)),
    [
        "{write|spell|say} the number {in words|in letters|as words|in English}",
        "{spell out|write out} the number",
        f"{OUT} the number in {{English |}}words {{instead of digits|not digits|}}",
        "{convert|turn|change} the {number|digits} {to|into} words",
        "How is the number {said|spoken|written} in {English|words}?",
        f"{OUT} the name of the number in English",
        "Given a number, write it {out |}{with|in} words.",
        "{read the number aloud|pronounce the number}",
    ],
    [
        "express the number verbally, as one would speak it",
        "put the figure into plain words",
        "Tell me how to say this number.",
        "verbalise the number",
        "Digits come in; English number words go out.",
    ],
)
task(
    "words_to_number",
    lambda r: w.number_in_words(r.randint(0, 999)),
    lambda t: next(str(n) for n in range(1000) if w.number_in_words(n) == t),
    [
        f"{OUT} the number {{in digits|as digits|with digits|in figures}}",
        "{convert|turn|change} the words {to|into} {a number|digits}",
        f"{OUT} the {{digits|numeral}} for the number {{written|given}} in words",
        "Which number do the words {name|spell}?",
        "Given a number in words, write it {in|with} digits.",
    ],
    [
        "express the spelled-out number numerically",
        "put the number words into figures",
        "Tell me the numeral that these words stand for.",
        "Number words come in; digits go out.",
    ],
)
task(
    "ordinal",
    small,
    lambda t: w.ordinal(int(t)),
    [
        f"{OUT} the ordinal {{form |}}of the number, {{like|such as|as in}} 1st or 2nd",
        "{turn|convert|change} the number into {an|its} ordinal",
        "{add|append} the ordinal {ending|suffix} to the number",
        f"{OUT} the number with st, nd, rd or th",
        "Given a number, {write|give} its ordinal with digits.",
    ],
    [
        "make it a rank: first place would be 1st",
        "attach the right ending so that the number denotes a position in a row",
        "Tell me the ordinal numeral that belongs to the number.",
        "express the number as a place in a ranking, in digits",
    ],
)
task(
    "add_zero",
    small,
    lambda t: t + "0",
    [
        "{write|put|append|add} a zero {at the end of|after|behind} the number",
        "multiply the number by {ten|10}",
        f"{OUT} ten times the number",
        "What is the number times ten?",
        "Given a number, {multiply it by ten|put a zero after it}.",
    ],
    [
        "make the number ten times as large",
        "scale the number up by a factor of ten",
        "attach a nought on the right side",
        "Answer with the tenfold of the number.",
    ],
)
task(
    "count_up",
    small,
    lambda t: " ".join(str(int(t) + k) for k in (1, 2, 3)),
    [
        f"{OUT} the next {{three|3}} numbers",
        f"{OUT} the {{three|3}} numbers {{after|that follow|that come after}} the number",
        "count {three|3} {numbers|steps} {up|on|further} from the number",
        "Which three numbers {follow|come next}?",
        "Given a number, {continue|go on counting} with the next three.",
    ],
    [
        "continue the count by three more numbers",
        "keep counting from there, three times",
        "Tell me the trio of numbers that come afterwards.",
        "list the three successors",
    ],
)
task(
    "greater_than_fifty",
    small,
    lambda t: "yes" if int(t) > 50 else "no",
    [
        "{say|write|answer} yes if the number is {greater|larger|more} than {50|fifty}, otherwise no",
        "Is the number {greater than|larger than|above|over|more than} {50|fifty}?",
        "{check|decide|tell} {if|whether} the number is {above|over|more than} fifty",
        f"{OUT} yes for a number {{above|over}} 50 and no for {{any other|a smaller one}}",
    ],
    [
        "does the number exceed fifty, yes or no",
        "judge whether the value goes beyond 50",
        "Answer yes when fifty is surpassed, no when it is not.",
        "test the number against fifty: bigger means yes",
    ],
)
task(
    "digit_sum",
    lambda r: str(r.randint(10, 99)),
    lambda t: str(sum(map(int, t))),
    [
        "{add|add up|sum} the digits of the number",
        f"{OUT} the sum of the {{number's digits|digits}}",
        "What is the sum of the digits?",
        "Given a number, {add its digits|add up all its digits}.",
    ],
    [
        "calculate the cross sum of the number",
        "what do the digits make when added together",
        "Tell me the digit sum.",
        "total up the individual figures of the number",
        "{calculate|compute} what you get by adding {all its|all the} digits",
    ],
)

# Grammar

NOUN, VERB, ADJECTIVE = one_of(w.nouns), one_of(w.verbs), one_of(w.adjectives)
task(
    "plural",
    NOUN,
    w.plural,
    [
        f"{OUT} the plural {{form |}}of the {{word|noun}}",
        "{turn|put} the {word|noun} {into the plural|in the plural}",
        "What is the plural of the {word|noun}?",
        "make the {noun|word} plural",
        "pluralize the {noun|word}",
        "{change|convert} the {noun|word} from singular to plural",
        "Given a {singular |}noun, {write|give} {its|the} plural.",
        f"{OUT} the word for {{more than one|several|many}} of them",
        f"{OUT} the plural of {{each word|the singular word}}",
    ],
    [
        "tell me what several of these are called",
        "the noun is singular; name the form for many",
        "supply the plural that belongs to the noun",
        "One of them comes in, many of them go out.",
        "provide the noun's plural",
    ],
)
task(
    "singular",
    lambda r: w.plural(NOUN(r)),
    lambda t: next(n for n in w.nouns() if w.plural(n) == t),
    [
        f"{OUT} the singular {{form |}}of the {{word|noun}}",
        "{put|turn} the {word|noun} into the singular",
        "What is the singular of the {word|noun}?",
        "make the {noun|word} singular",
        "{change|convert} the {noun|word} from plural to singular",
        "Given a plural {noun|word}, {write|give} {its|the} singular.",
        f"{OUT} the word for {{just one|only one|one}} of them",
    ],
    [
        "tell me what a single one of these is called",
        "the noun is plural; name the form for one",
        "supply the singular that belongs to the noun",
        "Many of them come in, one of them goes out.",
    ],
)
for name, do, form, varied in (
    (
        "past_tense",
        w.past,
        "{past tense|past form|simple past}",
        [
            "tell me the form of the verb that is used for yesterday",
            "shift the verb to the past",
            "supply the verb as if it had already happened",
            "It happens today; say it as something that happened before.",
        ],
    ),
    (
        "gerund",
        w.gerund,
        "{ing form|-ing form|present participle|gerund}",
        [
            "tell me the form of the verb that ends in ing",
            "make it an action going on at this moment, ending in -ing",
            "supply the continuous form",
            "attach the ending ing to the verb and mind the spelling",
        ],
    ),
    (
        "agent",
        w.agent,
        "{er form|noun for the person who does it|word for someone who does it|agent noun}",
        [
            "tell me what one calls a person who does this",
            "name the one who performs the action",
            "supply the noun in -er for whoever does it",
            "Who does this? Answer with a word that ends in er.",
        ],
    ),
):
    task(
        name,
        VERB,
        do,
        [
            f"{OUT} the {form} of the verb",
            f"{{change|turn|convert}} the verb {{to|into}} the {form}",
            f"What is the {form} of the verb?",
            f"Given a verb, {OUT} the {form}.",
            f"put the {{verb|word}} {{in|into}} the {form}",
        ],
        varied,
    )
task(
    "third_person",
    VERB,
    w.plural,
    [
        f"{OUT} the {{he or she|he/she|third person}} form of the verb",
        "put the verb in the third person {singular|}",
        f"{OUT} the verb as it {{follows|is used after|goes with}} {{he|she|he or she}}",
        "What is the third person {singular |}of the verb?",
        "Given a verb, {add the s of|make it agree with} {he or she|the third person}.",
    ],
    [
        "conjugate the verb for he, she or it",
        "adapt the verb to a subject such as she",
        "Tell me the verb form that comes behind the word he.",
        "let the verb agree with he",
    ],
)
task(
    "comparative",
    ADJECTIVE,
    w.comparative,
    [
        f"{OUT} the comparative {{form |}}of the {{adjective|word}}",
        "{turn|change|convert} the adjective into {the|its} comparative",
        "What is the comparative of the {adjective|word}?",
        "Given an adjective, {write|give} the comparative.",
        f"{OUT} the {{er form|-er form}} of the adjective",
    ],
    [
        "say that something has more of this quality",
        "intensify the adjective by one step, with er",
        "supply the form used with than",
        "Tell me the adjective as one would use it to compare two things.",
    ],
)
task(
    "superlative",
    ADJECTIVE,
    w.superlative,
    [
        f"{OUT} the superlative {{form |}}of the {{adjective|word}}",
        "{turn|change|convert} the adjective into {the|its} superlative",
        "What is the superlative of the {adjective|word}?",
        "Given an adjective, {write|give} the superlative.",
        f"{OUT} the {{est form|-est form}} of the adjective",
    ],
    [
        "say that something has the most of this quality",
        "take the adjective to its highest degree, with est",
        "supply the form for the top of all",
        "Tell me the adjective for the one that beats all others.",
    ],
)
task(
    "adverb",
    one_of(w.adverb_adjectives),
    w.adverb,
    [
        f"{OUT} the adverb {{of|for|that belongs to}} the adjective",
        "{turn|change|convert|make} the {adjective|word} into an adverb",
        "What is the adverb of the {adjective|word}?",
        "Given an adjective, {write|give} the adverb.",
        f"{OUT} the {{ly form|-ly form}} of the word",
    ],
    [
        "let the word describe how something is done",
        "supply the form that ends in ly",
        "Tell me the word as it would modify a verb.",
        "derive the adverb from the adjective",
    ],
)
task(
    "article",
    NOUN,
    lambda t: ("an " if t[0] in V else "a ") + t,
    [
        "{put|write|add} {a or an|the right article a or an|the article} {before|in front of} the {noun|word}",
        f"{OUT} the noun with a or an",
        "Is it a or an? {Write|Give} the {noun|word} with its article.",
        f"{OUT} the {{noun|word}} with {{the|its}} indefinite article",
        "Given a noun, {add|put} a or an {in front|before it}.",
    ],
    [
        "precede the noun by the fitting indefinite article",
        "choose between a and an and set it ahead of the noun",
        "supply the noun together with a or an",
        "Tell me the noun preceded by its article.",
    ],
)
SUBJECTS = ("he", "she", "it", "the dog", "the king", "my sister", "the child", "our teacher")
PLACES = ("here", "there", "happy", "late", "ready", "at home", "in the park", "very old", "tired", "hungry", "in town")


def statement(rng: Random) -> str:
    subject = rng.choice(SUBJECTS) if rng.random() < 0.5 else "the " + NOUN(rng)
    place = rng.choice(PLACES) if rng.random() < 0.6 else rng.choice(w.adverb_adjectives())
    return f"{subject} {rng.choice(('is', 'was'))} {place}"


def with_verb(text: str, do: Callable[[str, str, str], str]) -> str:
    be = " is " if " is " in text else " was "
    subject, rest = text.split(be, 1)
    return do(subject, be.strip(), rest)


task(
    "negate",
    statement,
    lambda t: with_verb(t, lambda s, be, r: f"{s} {be} not {r}"),
    [
        "{negate|deny} the {sentence|statement}",
        "make the {sentence|statement} negative",
        f"{OUT} the negation of the {{sentence|statement}}",
        "{insert|add|put} the word not {into the sentence|where it belongs|after the verb}",
        "Given a {sentence|statement}, {write|say} that it is not so.",
    ],
    [
        "claim the contrary by means of not",
        "the statement should be turned into its denial",
        "Contradict what I say with a not.",
        "say that the opposite is the case, using not",
    ],
)
task(
    "to_question",
    statement,
    lambda t: with_verb(t, lambda s, be, r: f"{be} {s} {r}?"),
    [
        "{turn|change|convert|make} the {sentence|statement} into a question",
        f"{OUT} the {{sentence|statement}} as a question",
        "ask {whether it is so|if the statement is true}",
        "Given a {sentence|statement}, {ask|write} the question.",
        "make a {yes or no|} question {out of|from} the {sentence|statement}",
    ],
    [
        "rephrase the claim interrogatively",
        "swap verb and subject so that it asks",
        "Inquire about what I state.",
        "transform the assertion into an inquiry",
    ],
)
task(
    "to_past",
    lambda r: statement(r).replace(" was ", " is "),
    lambda t: t.replace(" is ", " was ", 1),
    [
        "{put|change|turn} the sentence {into|to} the past {tense|}",
        f"{OUT} the sentence in the past tense",
        "replace is {by|with} was",
        f"{OUT} what {{happened|was so}} {{before|in the past}}",
        "Given a sentence about now, {put|write} it in the past.",
    ],
    [
        "talk about it as something that was so earlier",
        "let the sentence be about yesterday",
        "Make it past, not present.",
        "shift the statement back in time",
    ],
)
PRONOUNS = {"he": "she", "him": "her", "his": "her", "himself": "herself"}


def about_him(rng: Random) -> str:
    parts = [w.random_word(rng, 2, 6) for _ in range(rng.randint(2, 3))]
    parts.insert(rng.randint(0, len(parts)), rng.choice(("he", "him", "his")))
    return "he " + " ".join(parts)


task(
    "he_to_she",
    about_him,
    lambda t: " ".join(PRONOUNS.get(x, x) for x in t.split()),
    [
        "{change|turn} he {to|into} she and his to her",
        "{replace|exchange} {all |}{male|masculine} pronouns with female ones",
        "make the {sentence|text} about a {woman|girl} {instead of a man|}",
        f"{OUT} the text with {{female|feminine}} pronouns",
        "Given a text about him, {write|tell} it about her.",
    ],
    [
        "switch the gender from male to female",
        "let a lady be the one it is about",
        "swap masculine words such as he for feminine ones",
        "Retell it with she in place of he.",
    ],
)
task(
    "i_to_we",
    lambda r: (
        "i "
        + " ".join(w.random_word(r, 2, 6) for _ in range(r.randint(2, 4)))
        + r.choice((" my ", " "))
        + w.random_word(r, 3, 6)
    ),
    lambda t: " ".join({"i": "we", "my": "our"}.get(x, x) for x in t.split()),
    [
        "{change|turn} i {to|into} we and my to our",
        "{replace|exchange} i {by|with} we",
        f"{OUT} the sentence in the first person plural",
        "make the sentence about us instead of me",
        "Given a sentence with i, say it with we.",
    ],
    [
        "speak for a group rather than for one person",
        "let several people be the speakers",
        "Use we where the speaker says i.",
        "pluralise the speaker",
    ],
)
task(
    "possessive",
    lambda r: f"{NOUN(r)} {NOUN(r)}",
    lambda t: "the {}'s {}".format(*t.split()),
    [
        "say that the second thing belongs to the first, with 's",
        f"{OUT} the possessive: the first word's second word",
        "{join|connect} the two words {with|by} a possessive 's",
        "make the first word the owner of the second",
        "Given two nouns, {write|make} the possessive form.",
    ],
    [
        "express ownership: the former owns the latter",
        "link both nouns in the genitive",
        "Make a phrase in which noun one possesses noun two.",
        "use apostrophe s to tie both nouns together",
    ],
)
task(
    "not_prefix",
    ADJECTIVE,
    lambda t: "un" + t,
    [
        "{add|put|write} the prefix un {to|before|in front of} the word",
        "{put|write} un {before|in front of} the word",
        f"{OUT} the word with un {{before it|at the start|in front}}",
        "make the word start with un",
        "Given a word, {prefix it with|put before it} un.",
    ],
    [
        "let un precede the word",
        "stick the letters un onto the beginning",
        "The word should get un as its first syllable.",
        "prepend un",
    ],
)
task(
    "hello",
    lambda r: r.choice(w.vocabulary()[500:6000]),
    lambda t: f"hello {t}!",
    [
        "{greet|say hello to} the person {in the input|by name|}",
        "say hello to {the name|whoever is named}",
        f"{OUT} a greeting {{to|for}} the {{person|name}}",
        "{write|say} hello, the name and an exclamation mark",
        "Given a name, {greet it|say hello}.",
    ],
    [
        "welcome whoever is mentioned",
        "be polite and salute the person",
        "Address the named one with a friendly hello.",
        "utter a hello towards the given name",
    ],
)
task(
    "too",
    sentence,
    lambda t: t + " too",
    [
        "{add|append|put} the word too {at the end|after the sentence|to the sentence}",
        f"{OUT} the sentence and then too",
        "{end|finish} the sentence with the word too",
        "repeat the sentence with too {at the end|added}",
        "Given a sentence, {put|write} too after it.",
    ],
    [
        "the closing word has to be too",
        "agree by repeating everything and saying too",
        "Everything stays, and too follows.",
        "attach too as an additional final word",
    ],
)

# Spelling

task(
    "copy",
    sentence,
    str,
    [
        "{repeat|copy} the {text|input|sentence} {exactly|as it is|unchanged|}",
        f"{OUT} the same text {{again|back}}",
        "say exactly what {i say|you are told}",
        "do not change anything, just repeat the text",
        "Given a text, {copy it|return it unchanged}.",
    ],
    [
        "echo everything",
        "act like a parrot",
        "Send back the very words that you receive.",
        "leave it untouched and hand it back",
    ],
)
task(
    "twice",
    sentence,
    lambda t: f"{t} {t}",
    [
        f"{OUT} the {{text|sentence|input}} {{twice|two times}}",
        "repeat the {text|sentence} {twice|two times}",
        "say {everything|the whole text} {twice|two times}",
        "{double|duplicate} the {whole |}{text|sentence}",
        "Given a text, write it {two times|twice in a row}.",
    ],
    [
        "everything should occur two times in a row",
        "echo it and then echo it again",
        "Say the same thing over, so that it stands there doubly.",
        "put a second copy of it behind the first",
    ],
)
task(
    "word_three_times",
    word,
    lambda t: f"{t} {t} {t}",
    [
        f"{OUT} the word {{three|3}} times",
        "repeat the word {three|3} times",
        "say the word three times {in a row|}",
        "triple the word",
        "Given a word, write it three times.",
    ],
    [
        "the word should occur thrice",
        "echo the word until it stands there three times",
        "Three copies of the word, please.",
        "chant the word thrice",
    ],
)
task(
    "exclaim",
    sentence,
    lambda t: t + "!",
    [
        "{add|put|append} an exclamation {mark|point} {at the end|to the text|after the text}",
        "{end|finish} the {text|sentence} with an exclamation mark",
        f"{OUT} the text {{and|with}} an exclamation mark {{after it|at its end}}",
        "make {it|the sentence} an exclamation",
    ],
    [
        "let it sound excited by closing with !",
        "attach the mark of shouting",
        "Shout it: the same words and a closing exclamation sign.",
        "punctuate it as something exclaimed",
    ],
)
task(
    "question_mark",
    sentence,
    lambda t: t + "?",
    [
        "{add|put|append} a question mark {at the end|to the text|after the text}",
        "{end|finish} the {text|sentence} with a question mark",
        f"{OUT} the text {{and|with}} a question mark {{after it|at its end}}",
        "put the sign of a question behind the text",
    ],
    [
        "let it close with ?",
        "attach the punctuation of asking",
        "The same words, ended by a question mark.",
        "punctuate it as something asked",
    ],
)
task(
    "capitalize_each",
    sentence,
    str.title,
    [
        "capitalize {each|every} word",
        "{write|put} each word with a capital {first letter|letter at its start|initial}",
        "{put|write} the text in title case",
        "make the first letter of {each|every} word {upper case|a capital}",
        "{start|begin} {each|every} word with a capital letter",
    ],
    [
        "set it like a headline, each word starting big",
        "all the words want a capital initial",
        "Every word shall begin with an upper-case letter.",
        "apply title capitalisation",
    ],
)
task(
    "capitalize_first",
    sentence,
    str.capitalize,
    [
        "capitalize the {sentence|first letter of the sentence}",
        "{start|begin} the sentence with a capital letter",
        "make the first letter of the {text|sentence} {upper case|a capital}",
        f"{OUT} the sentence with a capital at the start",
        "Given a sentence, capitalize its first letter.",
    ],
    [
        "the sentence must open with a big letter",
        "correct the missing capital at the beginning",
        "Only the initial character goes to upper case.",
        "raise the leading letter of the sentence",
    ],
)
task(
    "swap_case",
    lambda r: " ".join(x.upper() if r.random() < 0.5 else x for x in sentence(r).split()),
    str.swapcase,
    [
        "{swap|switch|invert} the case of {every letter|all letters|the letters}",
        "make {small|lower case} letters {big|upper case} and {big|upper case} letters {small|lower case}",
        "{turn|change} upper case into lower case and {the other way round|lower case into upper case}",
        "Given a text, {swap|exchange} upper and lower case.",
    ],
    [
        "each capital goes small and each small letter goes capital",
        "toggle the case throughout",
        "What is big becomes small and the reverse.",
        "flip between upper and lower for all characters",
    ],
)
task(
    "remove_vowels",
    sentence,
    lambda t: "".join(c for c in t if c not in V),
    [
        "{remove|delete|drop} {all|the} vowels",
        f"{OUT} the text without {{its |}}vowels",
        "{leave out|omit|skip} {every vowel|the vowels|the letters a, e, i, o and u}",
        "keep {only the consonants and spaces|everything but the vowels}",
        "Given a text, {remove|delete} its vowels.",
    ],
    ["strip every a, e, i, o, u", "disemvowel it", "No vowel may be left in the text.", "filter the vowels away"],
)
task(
    "only_vowels",
    word,
    lambda t: "".join(c for c in t if c in V) or "none",
    [
        f"{OUT} {{only|just}} the vowels {{of|in}} the word",
        "{extract|find|list} the vowels of the word",
        "{remove|delete} all consonants {from the word|}",
        "Which vowels are in the word?",
        "Given a word, {keep only|write just} its vowels.",
    ],
    [
        "strip every consonant",
        "what remains of the word once you hear only the vowels",
        "Every a, e, i, o, u in order, and nothing else of the word.",
        "filter the consonants away",
    ],
)
task(
    "star_vowels",
    sentence,
    lambda t: "".join("*" if c in V else c for c in t),
    [
        "{replace|exchange} {all|the|all} {vowels|vowel letters} {with|by} {stars|asterisks}",
        "{hide|mask|cover} the vowels {with|by} {stars|asterisks}",
        f"{OUT} the text with {{a star|an asterisk}} for {{each|every}} vowel",
        "put {a star|an asterisk} in place of {each|every} vowel",
    ],
    [
        "vowels should be censored by *",
        "each a, e, i, o, u turns to an asterisk",
        "Where a vowel stands, an asterisk should stand.",
        "blot out the vowels using the star sign",
    ],
)
task(
    "no_spaces",
    sentence,
    lambda t: t.replace(" ", ""),
    [
        "{remove|delete|drop} {all|the} {spaces|blanks}",
        f"{OUT} the {{text|words}} without {{any |}}spaces",
        "{join|glue} the words together {without spaces|}",
        "write all the words as one {word|}",
        "Given a text, {remove|delete} its spaces.",
    ],
    [
        "close the gaps between the words",
        "run the words into each other",
        "No blank may be left in the text.",
        "squeeze out the white space",
    ],
)
task(
    "initials",
    sentence,
    lambda t: "".join(x[0] for x in t.split()),
    [
        f"{OUT} the first letter of {{each|every}} word",
        f"{OUT} the {{first letters|initials}} of {{all|the}} words",
        "{make|build|form} an acronym {of|from} the {words|sentence}",
        "{extract|take} the initial of {each|every} word",
        "Given a sentence, {write|give} its initials.",
    ],
    [
        "abbreviate the message by its initials",
        "collect what each word begins with",
        "Take every word's opening letter and join them.",
        "shorten each word to its initial",
    ],
)
task(
    "first_letter_last_word",
    sentence,
    lambda t: t.split()[-1][0],
    [
        f"{OUT} the first letter of the {{last|final}} word",
        "What is the first letter of the last word?",
        "{extract|take|find} the {first letter|initial} of the {last|final} word",
        "look at the last word and write its first letter",
        "Which letter does the last word {start|begin} with?",
    ],
    [
        "state what the closing word begins with",
        "the opening letter of the closing word is wanted",
        "Go to the last word and name its first character.",
        "pick the initial off the end word",
    ],
)
task(
    "last_letter_first_word",
    sentence,
    lambda t: t.split()[0][-1],
    [
        f"{OUT} the last letter of the first word",
        "What is the last letter of the first word?",
        "{extract|take|find} the {last|final} letter of the first word",
        "look at the first word and write its last letter",
        "Which letter does the first word end with?",
    ],
    [
        "state what the opening word ends in",
        "the closing letter of the opening word is wanted",
        "Go to the first word and name its final character.",
        "pick the tail letter off the first word",
    ],
)
task(
    "first_letters_dots",
    lambda r: sentence(r, 2, 3),
    lambda t: " ".join(x[0] + "." for x in t.split()),
    [
        "{abbreviate|shorten} {each|every} word to its first letter and a {period|dot}",
        f"{OUT} {{each|every}} word as {{an initial|its first letter}} with a {{dot|period}}",
        "{write|give} the initials with {dots|periods}",
        "keep only the first letter of each word, followed by a {dot|period}",
    ],
    [
        "turn the name into dotted initials",
        "each word is cut to one letter plus full stop",
        "Initials, please, every one with its point.",
        "dot-abbreviate all the words",
    ],
)
task(
    "reverse_each_word",
    sentence,
    lambda t: " ".join(x[::-1] for x in t.split()),
    [
        "reverse {each|every} word {but keep the word order|in place|}",
        "{write|spell} {each|every} word {backwards|in reverse}",
        "reverse the letters of {each|every} word",
        f"{OUT} the text with the letters of each word reversed",
        "Given a sentence, {reverse|flip} the letters within each word.",
    ],
    [
        "mirror all words one by one, in their places",
        "each of the words should be read from its end",
        "Leave the order of words, spell every one from back to front.",
        "turn each word around on the spot",
    ],
)
task(
    "a_to_e",
    sentence,
    lambda t: t.replace("a", "e"),
    [
        "{replace|exchange} {all a's|every a|the letter a} {with|by} {e|the letter e}",
        "{change|turn} {every|each} a {to|into} {an |}e",
        f"{OUT} the text with e {{instead of|in place of|for}} a",
        "Given a text, write e for {every|each} a.",
    ],
    [
        "substitute e wherever a occurs",
        "no a may be left: e takes its place",
        "Where you see a, put e.",
        "make all letters a become e",
    ],
)
task(
    "spaces_to_newline_words",
    lambda r: sentence(r, 2, 4),
    lambda t: " and ".join(t.split()),
    [
        "{join|connect|link} the words with {the word |}and",
        "{put|write|insert} {the word |}and between {the|all} words",
        f"{OUT} the words with and {{between them|in between}}",
        "Given some words, {put|write} and between them.",
    ],
    [
        "chain the words together by and",
        "an and must stand in every gap",
        "Word and word and word: that is the shape wanted.",
        "conjoin all the words",
    ],
)
task(
    "double_letters",
    word,
    lambda t: "".join(c * 2 for c in t),
    [
        "{double|repeat} {each|every} letter {of the word|}",
        "write {each|every} letter {twice|two times}",
        f"{OUT} the word with {{each|every}} letter doubled",
        "Given a word, {double|duplicate} all its letters.",
    ],
    [
        "all letters should occur as pairs",
        "stretch the word by writing its letters two at a time",
        "Each character twice in a row.",
        "duplicate the characters one by one",
    ],
)
task(
    "double_words",
    lambda r: sentence(r, 2, 4),
    lambda t: " ".join(f"{x} {x}" for x in t.split()),
    [
        "{double|repeat} {each|every} word",
        "write {each|every} word {twice|two times}",
        f"{OUT} the text with {{each|every}} word doubled",
        "say every word twice before the next",
        "Given a sentence, {double|duplicate} all its words.",
    ],
    [
        "all words should occur as pairs",
        "stutter: each word is followed by itself",
        "Each word two times in a row.",
        "duplicate the words one by one",
    ],
)
task(
    "sentence_punctuation",
    sentence,
    lambda t: t.capitalize() + ".",
    [
        "{write|make} it a proper sentence with a capital {letter |}and a {period|full stop}",
        "capitalize the first letter and {add|put} a {period|full stop} at the end",
        "{correct|fix} capital and {period|full stop} of the sentence",
        "begin with a capital letter and end with a {period|full stop}",
    ],
    [
        "give it the capital and the closing dot that a sentence needs",
        "tidy up how the sentence starts and stops",
        "From raw words to a sentence: big letter first, point last.",
        "punctuate properly, with a big initial and a final point",
    ],
)
task(
    "hash_tag",
    lambda r: sentence(r, 2, 3),
    lambda t: "#" + t.replace(" ", ""),
    [
        "{make|form} a hashtag {of|from|out of} the words",
        "{turn|change|convert} the words into {a hashtag|one hashtag}",
        "{put|write} a hash sign in front and remove the spaces",
        f"{OUT} the words as {{a|one}} hashtag",
        "Given some words, write the hashtag.",
    ],
    [
        "tag it as on social media, one word after #",
        "run the words together behind a #",
        "A hash, then all the words glued to each other.",
        "social media style: hashtag it",
    ],
)
task(
    "camel_case",
    lambda r: sentence(r, 2, 3),
    lambda t: t.split()[0] + "".join(x.capitalize() for x in t.split()[1:]),
    [
        "{write|put} the words in camel case",
        "{turn|convert|change} the words {to|into} camel case",
        f"{OUT} the camel case {{name|form}} of the words",
        "join the words and capitalize all but the first",
        "Given some words, {make|write} a camel case name.",
    ],
    [
        "spell it like a variable named in camelCase",
        "glue the words, humps from word two on",
        "A programmer's camelCase identifier is wanted.",
        "fuse the words with inner capitals",
    ],
)

# Lists

task(
    "and_list",
    items,
    lambda t: " and ".join(t.rsplit(", ", 1)),
    [
        "{write|put} and {instead of|in place of} the last comma",
        f"{OUT} the list as {{in a sentence|one says it}}, with and before the last item",
        "{replace|replace} the last comma {by|with} and",
        "put and before the last {item|element} {of the list|}",
        "Given a list, {join|connect} its last two items with and.",
    ],
    [
        "speak the list naturally, closing with and",
        "the final comma should become the word and",
        "Make it read as prose: a, b and c.",
        "phrase the enumeration with a concluding and",
    ],
)
task(
    "list_to_words",
    items,
    lambda t: t.replace(", ", " "),
    [
        "{remove|delete|drop} {all |}the commas",
        f"{OUT} the list without {{the |}}commas",
        "{separate|split} the items with spaces {only|instead of commas}",
        "replace the commas with spaces",
    ],
    [
        "no comma may be left in the list",
        "leave the things, lose the commas",
        "Blanks alone should part the things.",
        "purge the list of commas",
    ],
)
task(
    "words_to_list",
    sentence,
    lambda t: t.replace(" ", ", "),
    [
        "{turn|change|convert|make} the words into a comma-separated list",
        f"{OUT} the words as a list with commas",
        "put a comma and a space between the words",
        "{make|write} a list of the words",
    ],
    [
        "enumerate the words, parted by commas",
        "list every word of the sentence",
        "Words in, comma list out.",
        "itemise the words using commas",
    ],
)
task(
    "brackets_list",
    items,
    lambda t: "[" + t + "]",
    [
        "{write|put} the list in square brackets",
        "{put|add} square brackets around the list",
        f"{OUT} the list as {{in Python|a programmer writes it|code}}, in square brackets",
        "Given a list, {wrap|enclose} it in square brackets.",
    ],
    [
        "let [ open and ] close the list",
        "fence the list with square brackets",
        "A programmer's list notation is wanted.",
        "bracket the enumeration squarely",
    ],
)
task(
    "longest_item",
    lambda r: ", ".join(r.sample([w.random_word(r, n, n) for n in r.sample(range(3, 10), 3)], 3)),
    lambda t: max(t.split(", "), key=len),
    [
        f"{OUT} the longest {{item|word|element}} {{of|in}} the list",
        "{find|pick|select} the longest {item|word|element}",
        "Which {item|word} is the longest?",
        "Given a list, {return|choose} the word with the most letters.",
    ],
    [
        "name the thing with most characters",
        "search for the lengthiest word",
        "Which one takes the most letters to write?",
        "single out the one that is longest",
    ],
)
task(
    "shortest_item",
    lambda r: ", ".join(r.sample([w.random_word(r, n, n) for n in r.sample(range(3, 10), 3)], 3)),
    lambda t: min(t.split(", "), key=len),
    [
        f"{OUT} the shortest {{item|word|element}} {{of|in}} the list",
        "{find|pick|select} the shortest {item|word|element}",
        "Which {item|word} is the shortest?",
        "Given a list, {return|choose} the word with the fewest letters.",
    ],
    [
        "name the thing with fewest characters",
        "search for the briefest word",
        "Which one takes the fewest letters to write?",
        "single out the one that is shortest",
    ],
)
task(
    "numbered_list",
    lambda r: items(r, 3, 3),
    lambda t: " ".join(f"{i}. {x}" for i, x in enumerate(t.split(", "), 1)),
    [
        "number the {items|elements} {of the list|}",
        f"{OUT} the list with numbers {{before|in front of}} the items",
        "{make|write} a numbered list",
        "put 1., 2., 3. before the items",
    ],
    [
        "each thing should carry its position in front",
        "count the things off: 1. and so on",
        "A numeral and a point ahead of each thing.",
        "enumerate with numerals",
    ],
)

# Questions about a text

task(
    "starts_with_vowel",
    lambda r: r.choice(V) + w.random_word(r, 2, 6) if r.random() < 0.4 else word(r),
    lambda t: "yes" if t[0] in V else "no",
    [
        "{say|write|answer} yes if the word {starts|begins} with a vowel, otherwise no",
        "Does the word {start|begin} with a vowel?",
        "{check|decide|tell} {if|whether} the {word starts with|first letter is} a vowel",
        "Is the first letter {of the word |}a vowel?",
    ],
    [
        "yes or no: is there a vowel at the start",
        "judge whether a vowel opens the word",
        "Answer yes when the opening letter is a, e, i, o or u, else no.",
        "test the initial for being a vowel",
    ],
)
task(
    "contains_a",
    word,
    lambda t: "yes" if "a" in t else "no",
    [
        "{say|write|answer} yes if the word {contains|has} {the letter a|an a}, otherwise no",
        "{Is there|Is there} {the letter a|an a} in it?",
        "{check|decide|tell} {if|whether} {the letter a|an a} is in the word",
        "Does the word {contain|have} the letter a?",
    ],
    [
        "yes or no: does a occur in there",
        "judge whether an a is among the letters",
        "Answer yes when you spot an a, else no.",
        "look for the letter a and report yes or no",
    ],
)
task(
    "word_or_number",
    lambda r: word(r) if r.random() < 0.5 else digits(r),
    lambda t: "number" if t.isdigit() else "word",
    [
        "{say|write|tell} whether the input is a {word or a number|number or a word}",
        "Is the input a word or a number?",
        "{classify|label} the input as word or number",
        f"{OUT} number for digits and word for letters",
    ],
    [
        "decide between word and number",
        "determine if digits or letters came in, as number or word",
        "What is it, a number or a word?",
        "name the kind of input, word or number",
    ],
)
task(
    "same_words",
    lambda r: (lambda x: f"{x} {x}" if r.random() < 0.5 else f"{x} {word(r)}")(word(r)),
    lambda t: "yes" if len(set(t.split())) == 1 else "no",
    [
        "{say|write|answer} yes if the two words are {the same|equal|identical}, otherwise no",
        "Are the two words {the same|equal|identical}?",
        "{check|decide|tell} {if|whether} both words are {equal|the same}",
        "compare the words: yes if they are the same, no if not",
    ],
    [
        "yes or no: do both words match",
        "judge whether one and the same word came twice",
        "Answer yes to a pair of equal words, else no.",
        "test the two words for equality",
    ],
)

# Never trained: operations that no trained task has

task(
    "sort_letters",
    lambda r: w.random_word(r, 3, 6),
    lambda t: "".join(sorted(t)),
    [
        "sort the letters of the word alphabetically",
    ],
    [
        "put the letters of the word in alphabetical order",
        "Sort the letters from a to z.",
        "arrange the word's characters alphabetically",
        "Write the letters in the order of the alphabet.",
    ],
    "operation",
)
task(
    "next_letter",
    lambda r: w.random_word(r, 3, 5),
    lambda t: "".join(chr((ord(c) - 96) % 26 + 97) for c in t),
    [
        "replace each letter by the next one in the alphabet",
    ],
    [
        "shift every letter forward by one in the alphabet",
        "Replace each letter with the one after it.",
        "apply a Caesar cipher with a shift of one",
        "Move each letter one step on.",
    ],
    "operation",
)
task(
    "middle_word",
    lambda r: sentence(r, 5, 5),
    lambda t: t.split()[2],
    [
        "write the middle word of the sentence",
    ],
    [
        "give the word in the middle",
        "Which word stands in the centre?",
        "output the central word of the sentence",
        "Pick the word that is halfway through.",
    ],
    "operation",
)
task(
    "every_other_word",
    lambda r: sentence(r, 4, 6),
    lambda t: " ".join(t.split()[::2]),
    [
        "write every other word, starting with the first",
    ],
    [
        "keep every second word beginning with the first one",
        "Skip each second word.",
        "write the words at odd positions",
        "Drop words two, four, six and so on.",
    ],
    "operation",
)
task(
    "product",
    lambda r: f"{r.randint(2, 12)} {r.randint(2, 12)}",
    lambda t: str(int(t.split()[0]) * int(t.split()[1])),
    [
        "multiply the two numbers",
    ],
    [
        "write the product of both numbers",
        "What is the first number times the second?",
        "compute the product",
        "Multiply one number by the other.",
    ],
    "operation",
)
task(
    "sort_numbers",
    number_list,
    lambda t: ", ".join(sorted(t.split(", "), key=int)),
    [
        "sort the numbers from smallest to largest",
    ],
    [
        "put the numbers in ascending order",
        "Sort the list of numbers.",
        "arrange the numbers from low to high",
        "Order the numbers by size, smallest first.",
    ],
    "operation",
)
task(
    "remove_duplicates",
    lambda r: (lambda x, y: ", ".join(r.sample([x, x, y, w.random_word(r, 3, 6)], 4)))(
        w.random_word(r, 3, 6), w.random_word(r, 3, 6)
    ),
    lambda t: ", ".join(dict.fromkeys(t.split(", "))),
    [
        "remove duplicates from the list",
    ],
    [
        "drop repeated items from the list",
        "Each item should be kept only once.",
        "delete the duplicates",
        "List the distinct items.",
    ],
    "operation",
)
task(
    "palindrome",
    lambda r: (lambda h: h + h[::-1] if r.random() < 0.5 else word(r))(w.random_word(r, 2, 4)),
    lambda t: "yes" if t == t[::-1] else "no",
    [
        "is the word a palindrome?",
    ],
    [
        "say yes if the word is a palindrome, else no",
        "Does the word read the same backwards?",
        "check whether the word equals its reverse",
        "Is it a palindrome, yes or no?",
    ],
    "operation",
)
task(
    "count_vowels",
    word,
    lambda t: str(sum(c in V for c in t)),
    [
        "count the vowels of the word",
    ],
    [
        "how many vowels are in the word",
        "Count the vowels.",
        "give the number of vowels in the word",
        "Tell me how often a, e, i, o or u occurs.",
    ],
    "operation",
)
task(
    "words_with_a",
    vowel_biased_sentence,
    lambda t: " ".join(x for x in t.split() if "a" in x) or "none",
    [
        "write only the words that contain the letter a",
    ],
    [
        "keep the words which have an a in them",
        "Which words contain the letter a?",
        "list all words with an a",
        "Filter the words by the letter a.",
    ],
    "operation",
)
