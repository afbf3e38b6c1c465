"""Tasks of our own: kinds of request that people make of a small assistant and that rules give examples for.

Clock times, weekdays, units, percentages, addresses and links to find, lists, JSON, names for files. What goes in and
out is made here; how people ask for it is in own.json.
"""

import json
from collections.abc import Callable
from datetime import date, time, timedelta
from pathlib import Path
from random import Random

from hyperlora.config import read_json
from training.mini.words import vocabulary
from training.tasks import Example, Task

GROUP = "own"
NAMES = (
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Karim", "Lena", "Marco",
    "Nadia", "Oscar", "Priya", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Victor", "Wendy", "Yusuf", "Zoe", "Aisha",
    "Boris", "Chloe", "Dmitri", "Emeka", "Fatima", "Gustav", "Hana", "Ivan", "Julia", "Kofi", "Leila", "Mateo",
    "Noor", "Olga",
)  # fmt: skip
SURNAMES = (
    "Adams", "Bauer", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Hansen", "Ito", "Jensen", "Kumar", "Lopez",
    "Meyer", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Silva", "Tanaka", "Ueda", "Vargas", "Weber", "Yilmaz",
    "Zhang", "Becker", "Clark", "Dubois", "Eriksson", "Fontaine",
)  # fmt: skip
CITIES = (
    "Rome", "Oslo", "Lima", "Cairo", "Dublin", "Prague", "Lagos", "Osaka", "Porto", "Quito", "Riga", "Seoul", "Tunis",
    "Vienna", "Zurich", "Boston", "Delhi",
)  # fmt: skip
JOBS = (
    "nurse", "teacher", "baker", "pilot", "lawyer", "plumber", "chef", "painter", "driver", "farmer", "dentist",
    "librarian",
)  # fmt: skip
HOSTS = (
    "acme.org", "example.com", "mail.net", "bluebird.io", "northwind.co", "oakhill.edu", "sunrise.info",
    "parkside.de",
)  # fmt: skip
SENTENCES = (  # with a place for what is to be found
    "Please send it to {} before Friday.", "You can reach me at {} if anything changes.", "My details: {}, thanks!",
    "I wrote to {} twice and got no answer.", "Use {} for all questions about the order.", "{} is the right one.",
    "The old one was wrong, it is now {}.", "Hi, could you add {} to the list?", "For the booking we need {} as well.",
    "Contact {}: they know more about it.",
)  # fmt: skip
ORDERS = (
    "close the window", "send me the report", "turn down the music", "wait outside", "call me back",
    "check the numbers", "sign this form", "move your car", "bring a chair", "read it again", "open the door",
    "help me with this box", "give me your address", "pass the salt", "explain it once more", "save me a seat",
    "print two copies", "be quiet", "water the plants", "tell me the price", "show me the way", "fix the printer",
    "order more paper", "lock the door", "stop talking", "leave a message", "come a bit earlier", "speak more slowly",
    "take off your shoes", "write it down",
)  # fmt: skip
FILES = {
    "a Python program": "py", "a web page": "html", "a style sheet": "css", "a picture": "jpg png gif webp bmp",
    "a sound": "mp3 wav ogg flac", "a video": "mp4 mov avi mkv webm", "a table": "csv xlsx ods tsv",
    "a text document": "docx odt txt rtf", "an archive": "zip tar gz 7z rar", "a presentation": "pptx odp",
    "a font": "ttf otf woff", "a calendar": "ics", "a book": "epub mobi", "a program": "exe msi app",
}  # fmt: skip
PEOPLE = (  # a name, an age and a city
    "{0} is {1} years old and lives in {2}.", "{0}, {1}, from {2}", "My name is {0}, I am {1} and I live in {2}.",
    "In {2} I met {0}, who is {1}.", "{0} ({1}) moved to {2} last year.", "hi, {0} here, {1}, writing from {2}",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
Make = Callable[[Random], tuple[str, str]]


def some_words(rng: Random, least: int, most: int) -> list[str]:
    return rng.sample(vocabulary()[500:6000], rng.randint(least, most))


def clock(moment: time) -> str:
    """A time of day with twelve hours: 12:05 AM."""
    return f"{moment.hour % 12 or 12}:{moment.minute:02d} {'AM' if moment.hour < 12 else 'PM'}"


def any_time(rng: Random) -> time:
    return time(rng.randint(0, 23), rng.randint(0, 59))


def to_12_hours(rng: Random) -> tuple[str, str]:
    moment = any_time(rng)
    return f"{moment:%H:%M}", clock(moment)


def to_24_hours(rng: Random) -> tuple[str, str]:
    moment = any_time(rng)
    written = clock(moment)
    return rng.choice((written, written.lower(), written.lower().replace(" ", ""))), f"{moment:%H:%M}"


def later_weekday(rng: Random) -> tuple[str, str]:
    start, days = rng.randrange(7), rng.randint(1, 20)
    text = rng.choice(("{day}, {n} days later", "{n} days after {day}", "{day} + {n} days"))
    return text.format(day=WEEKDAYS[start], n=days).replace(" 1 days", " 1 day"), WEEKDAYS[(start + days) % 7]


def next_date(rng: Random) -> tuple[str, str]:
    day = date(rng.randint(1990, 2035), 1, 1) + timedelta(days=rng.randrange(365))
    if rng.random() < 0.4:  # the end of a month
        day = day.replace(day=1) - timedelta(days=1)
    return day.isoformat(), (day + timedelta(days=1)).isoformat()


def leap_year(rng: Random) -> tuple[str, str]:
    year = rng.choice((rng.randint(1700, 2400), 4 * rng.randint(430, 590), 100 * rng.randint(15, 26)))
    return str(year), "yes" if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else "no"


def percent_of(rng: Random) -> tuple[str, str]:
    percent, whole = rng.choice((5, 10, 20, 25, 40, 50, 60, 75, 90)), 20 * rng.randint(1, 60)
    return rng.choice(("{}% of {}", "{} percent of {}")).format(percent, whole), str(percent * whole // 100)


def to_fahrenheit(rng: Random) -> tuple[str, str]:
    celsius = 5 * rng.randint(-8, 40)
    return rng.choice(("{}°C", "{} °C", "{} degrees Celsius", "{} C")).format(celsius), f"{celsius * 9 // 5 + 32}°F"


def to_metres(rng: Random) -> tuple[str, str]:
    unit, factor = rng.choice((("km", 1000), ("kilometres", 1000), ("cm", 0.01), ("mm", 0.001)))
    number = rng.randint(1, 99) if factor > 1 else rng.randint(1, 900)
    return f"{number} {unit}", f"{number * factor:g} m"


def hours_and_minutes(rng: Random) -> tuple[str, str]:
    minutes = rng.randint(61, 900)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} minutes", f"{hours} h {rest} min" if rest else f"{hours} h"


def prime(rng: Random) -> tuple[str, str]:
    number = rng.choice((rng.randint(2, 60), 2 * rng.randint(10, 150) + 1))
    return str(number), "yes" if all(number % i for i in range(2, int(number**0.5) + 1)) else "no"


def politely(rng: Random) -> tuple[str, str]:
    order = rng.choice(ORDERS)
    return rng.choice((order, order.capitalize(), f"{order.capitalize()}!", f"{order}!")), f"Could you please {order}?"


def person(rng: Random) -> tuple[str, str]:
    return rng.choice(NAMES), rng.choice(SURNAMES)


def address(first: str, last: str, host: str) -> str:
    return f"{first}.{last}@{host}".lower()


def make_address(rng: Random) -> tuple[str, str]:
    first, last = person(rng)
    host = rng.choice(HOSTS)
    return f"{first} {last}, {host}", address(first, last, host)


def in_a_sentence(rng: Random, found: str) -> str:
    first, last = person(rng)
    sentence = rng.choice(SENTENCES).format(found)
    return rng.choice((sentence, f"{sentence} {first} {last}", f"{sentence} See you in {rng.choice(CITIES)}."))


def find_address(rng: Random) -> tuple[str, str]:
    found = address(*person(rng), rng.choice(HOSTS))
    return in_a_sentence(rng, found), found


def find_phone_number(rng: Random) -> tuple[str, str]:
    digits = [rng.randint(100, 999), rng.randint(100, 999), rng.randint(1000, 9999)]
    found = rng.choice(("{}-{}-{}", "{} {} {}", "({}) {}-{}", "+1 {} {} {}")).format(*digits)
    return in_a_sentence(rng, found), found


def find_link(rng: Random) -> tuple[str, str]:
    found = f"{rng.choice(('https://', 'http://', 'www.'))}{rng.choice(HOSTS)}/{'-'.join(some_words(rng, 1, 2))}"
    return in_a_sentence(rng, found), found


def person_as_json(rng: Random) -> tuple[str, str]:
    first, age, city, job = rng.choice(NAMES), rng.randint(18, 80), rng.choice(CITIES), rng.choice(JOBS)
    text = rng.choice(PEOPLE)
    facts = {"name": first, "age": age, "city": city}
    if rng.random() < 0.3:
        text, facts = "{0} is a {3} from {2}, {1} years old.", {"name": first, "age": age, "city": city, "job": job}
    return text.format(first, age, city, job), json.dumps(facts)


def bullet_points(rng: Random) -> tuple[str, str]:
    items = some_words(rng, 3, 5)
    text = rng.choice((", ".join(items), f"{', '.join(items[:-1])} and {items[-1]}"))
    return text, "\n".join(f"- {item}" for item in items)


def sort_numbers(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(3, 6))
    return ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers)))


def sort_words(rng: Random) -> tuple[str, str]:
    items = some_words(rng, 3, 5)
    return ", ".join(items), ", ".join(sorted(items))


def title(rng: Random) -> str:
    return " ".join(some_words(rng, 2, 5)).capitalize() + rng.choice(("", "", "!", "?"))


def url_slug(rng: Random) -> tuple[str, str]:
    text = title(rng)
    return text, text.rstrip("!?").lower().replace(" ", "-")


def snake_case(rng: Random) -> tuple[str, str]:
    parts = some_words(rng, 2, 3)
    return parts[0] + "".join(part.capitalize() for part in parts[1:]), "_".join(parts)


def hide_digits(rng: Random) -> tuple[str, str]:
    text, found = find_phone_number(rng)
    return text, text.replace(found, "".join("*" if letter.isdigit() else letter for letter in found))


def kind_of_file(rng: Random) -> tuple[str, str]:
    kind = rng.choice(list(FILES))
    return f"{'_'.join(some_words(rng, 1, 2))}.{rng.choice(FILES[kind].split())}", kind


MAKERS: dict[str, Make] = {
    "to_12_hours": to_12_hours,
    "to_24_hours": to_24_hours,
    "later_weekday": later_weekday,
    "next_date": next_date,
    "leap_year": leap_year,
    "percent_of": percent_of,
    "to_fahrenheit": to_fahrenheit,
    "to_metres": to_metres,
    "hours_and_minutes": hours_and_minutes,
    "prime_number": prime,
    "politely": politely,
    "make_email_address": make_address,
    "find_email_address": find_address,
    "find_phone_number": find_phone_number,
    "find_link": find_link,
    "person_as_json": person_as_json,
    "bullet_points": bullet_points,
    "sort_numbers": sort_numbers,
    "sort_words": sort_words,
    "url_slug": url_slug,
    "snake_case": snake_case,
    "hide_digits": hide_digits,
    "kind_of_file": kind_of_file,
}


def own_tasks(train: int = 400, test: int = 56) -> list[Task]:
    """Each with at most so many training and test examples, no input in both, always the same; at least 10 tests."""
    wordings = read_json(Path(__file__).with_name("own.json"))
    tasks = []
    for name, make in MAKERS.items():
        rng, found = Random(name), {}
        for _ in range(10 * (train + test)):
            question, answer = make(rng)
            found.setdefault(question, answer)
        examples = [Example(input=question, output=answer) for question, answer in found.items()]
        count = min(test, len(examples) // 4)
        tasks.append(
            Task(f"own_{name}", **wordings[name], train=examples[count:][:train], test=examples[:count], group=GROUP)
        )
    return tasks
