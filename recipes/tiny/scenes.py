"""Short messages with generated names, numbers, places and times, which books and articles are poor in (`texts.py`).

All names are made here; what is generated is CC0. Digits are left to `numbers_as_words.py`, except in codes and
telephone numbers, which are read digit by digit.
"""

# ruff: noqa: SIM905 - lists of words are read and changed more easily as text
import re
from random import Random

_FIRST = """Ada Aisha Alice Amara Anders Anya Arjun Astrid Beatriz Ben Bruno Carla Chidi Chloe Clara Daniel Diego Edith
Elif Emma Enzo Farah Felix Fiona George Greta Hana Hugo Ines Ivan Jack Jana Joel Julia Kofi Lars Leila Liam
Lucia Maeve Marco Maria Maya Mehmet Mina Nadia Ngozi Nina Noah Oscar Pablo Paula Peter Priya Rahul Rosa Ruth
Samir Sofia Sven Tara Thabo Theo Uma Vera Victor Wei Yara Yusuf Zoe""".split()
_LAST = """
Adeyemi Almeida Anderson Baker Bauer Bianchi Blake Brandt Carter Chen Clarke Costa Demir Dubois Eriksson Evans
Fischer Fletcher Fontaine Garcia Gray Hansen Hayes Hughes Ibrahim Iversen Jansen Jensen Kaya Keller Khan
Kowalski Lambert Larsen Lopez Martin Mbeki Meyer Moreau Murphy Nair Novak Okafor Olsen Patel Pereira Price
Quinn Rao Reed Ricci Rossi Santos Schmidt Shah Silva Singh Sullivan Tanaka Torres Turner Visser Walsh Weber
Wright Yilmaz Young Zielinski""".split()
_CITIES = """Aberdeen Adelaide Athens Bergen Berlin Boston Brighton Bristol Calgary Cardiff Chicago Dallas Denver Dublin
Durban Edinburgh Geneva Glasgow Halifax Hamburg Istanbul Lagos Leeds Lisbon Lyon Madrid Memphis Milan Mumbai
Nairobi Oslo Ottawa Oxford Perth Porto Prague Seattle Seville Sydney Toronto Turin Vienna Warsaw Wellington
York Zurich""".split()
_TOWNS = (
    "Ash Oak Elm Black White Red Harp Mar Kings Thorn Cran Hart Mill Long Pen Gold",
    "ford bury field wood bridge dale",
)
_COMPANIES = (
    "Northwind Bluestone Harbour Summit Cobalt Redwood Falcon Orchard Juniper Kestrel Maple Beacon Thistle",
    "Foods Logistics Energy Software Textiles Motors Airlines Media Hotels Dairy Furniture",
)
_STREETS = (
    "Church Station Mill Park Victoria King Market Garden River Willow Castle",
    "Street Road Avenue Lane Square",
)
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_DIGITS = "zero one two three four five six seven eight nine".split()

# One drawn value for each name in braces and each number behind it: {city} and {city2} differ, {city} stays.
SCENES: dict[str, tuple[str, ...]] = {
    "voicemail": (
        "Hello, {first}, this is {full} from {company}|Hi, this is a message for {first} from {full} at {company}",
        "I'm calling about the contract|It is about the broken boiler|"
        "I wanted to talk to you about the second interview",
        "There are still {money} to pay, and we need that before {day}|The total comes to {money}, due on {day}",
        "You can reach me on {phone}|Please call me back on {phone}",
        "I'm in the office until {clock}|I'll be at my desk until {clock}, so there is no hurry",
    ),
    "train": (
        "The train from {city} to {city2} leaves from platform {few}|"
        "The service to {city2} departs from platform {few}",
        "It was due at {clock}, but it is running {many} minutes late because of snow|It is {many} "
        "minutes late because of "
        "a fallen tree",
        "It stops at {city3} and arrives in {city2} at {clock2}",
        "A single ticket costs {money}|We apologise for the delay",
    ),
    "weather": (
        "Here is the weather forecast for {day}",
        "In {city} it will be dry and sunny, with a top temperature of {many} degrees",
        "Around {city2}, expect {few} millimetres of rain and winds of up to {many2} miles an hour",
        "Tonight the temperature will fall to -{few2} degrees in {city3}|"
        "Tonight will be mild in {city3}, {few2} degrees",
    ),
    "life": (
        "{full} was born in {place} on {date}, {year}",
        "{first2} was the {ordinal} of {few} children, and the father was a baker|"
        "The family moved to {city} soon after",
        "In {later} came the move to {city2}, and work as an engineer|"
        "In {later} the first of {few2} books was published",
        "A museum in {place2} was opened by {full2} in {latest}",
    ),
    "results": (
        "{company}, which has its headquarters in {city}, published its results for {year2}",
        "Sales rose by {few}.{digit} % to ${hundreds} million|Sales fell by {few} % to €{hundreds} million",
        "The chief executive, {full}, said that demand had been stronger than expected|"
        "{full} called it a difficult year",
        "The company employs {thousands} people and plans to open a factory in {city2}",
    ),
    "parcel": (
        "A parcel from {company} is on its way to {full}",
        "It weighs {few} kilos and has the tracking number {code}|The tracking number is {code}",
        "The driver will be at {street} in {place} on {day} between {few2} and {many} o'clock",
        "If nobody is at home, it will be left with {full2} at number {many2}",
    ),
    "hotel": (
        "Welcome to the {town} Hotel in {city}. The room is booked for {full}",
        "You have room number {hundreds} on the {ordinal} floor, for {few} nights",
        "The room costs {money} a night, and breakfast starts at {clock}",
        "The code for the internet is {code}|You can park in {street} for {money2} a day",
    ),
    "match": (
        "{city} beat {city2} by {few} goals to nil in front of {thousands} spectators",
        "{last} opened the scoring in the {ordinal} minute|"
        "A red card for {last} in the {ordinal} minute decided the match",
        "The coach, {full}, called it a lesson for the younger players",
        "They play {city3} next {day} at {clock}",
    ),
    "meeting": (
        "The meeting of {date} was opened by {full} at {clock}, with {many} people present",
        "The first point was the summer fair, for which there is a budget of {money}",
        "{full2} was asked to write to the council before {day}|{full2} reported that {many2} forms had come back",
        "The next meeting is on {date2} in room {few}",
    ),
    "café": (
        "Hello, my name is {first}, what can I get you?",
        "I'd like two black coffees and a slice of carrot cake, please|A pot of green tea and {few} croissants, please",
        "That will be {money}. Is it for here or to take away?",
        "We are at table {many}, and the name is {last}|To take away, please, my train leaves at {clock}",
    ),
}


def scene(name: str, rng: Random) -> list[str]:
    """The sentences of one of `SCENES`, filled in."""
    drawn: dict[str, str] = {}

    def value(match: re.Match[str]) -> str:
        kind = match[1]
        while (key := match[1] + match[2]) not in drawn:
            found = _draw(kind, rng)
            if found not in drawn.values() or kind in ("digit", "year", "later", "latest"):
                drawn[key] = found
        return drawn[key]

    chosen = [rng.choice(alternatives.split("|")) for alternatives in SCENES[name]]
    filled = [re.sub(r"\{([a-z]+)(\d*)\}", value, sentence) for sentence in chosen]
    return [sentence if sentence[-1] in ".?!" else f"{sentence}." for sentence in filled]


def _draw(kind: str, rng: Random) -> str:
    def pair(words: tuple[str, str], joint: str = " ") -> str:
        return joint.join(rng.choice(part.split()) for part in words)

    def digits(count: int) -> str:
        return " ".join(rng.choice(_DIGITS) for _ in range(count))

    match kind:
        case "first":
            return rng.choice(_FIRST)
        case "last":
            return rng.choice(_LAST)
        case "full":
            return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
        case "city":
            return rng.choice(_CITIES)
        case "town":
            return pair(_TOWNS, "")
        case "place":
            return rng.choice(_CITIES) if rng.random() < 0.5 else pair(_TOWNS, "")
        case "company":
            return pair(_COMPANIES) if rng.random() < 0.7 else f"{rng.choice(_LAST)} and Sons"
        case "street":
            return f"{rng.randint(1, 260)} {pair(_STREETS)}"
        case "day":
            return rng.choice(_DAYS)
        case "date":
            return f"{rng.choice(_MONTHS)} {_ordinal(rng.randint(1, 28))}"
        case "ordinal":
            return _ordinal(rng.randint(2, 44))
        case "clock":
            return f"{rng.randint(1, 12)}:{rng.choice((0, 0, 5, 10, 15, 20, 30, 40, 45, 50, 53)):02d}"
        case "money":
            return f"{rng.choice('$$£€')}{rng.randint(2, 190)}" + rng.choice(("", "", ".20", ".50", ".95"))
        case "phone":
            return ", ".join(digits(count) for count in rng.choice(((3, 3, 4), (4, 3, 3), (3, 4))))
        case "code":
            return f"{' '.join(rng.sample('ABCDEFGHJKLMNPRSTUVWXYZ', 2))} {digits(3)}"
        case "digit":
            return str(rng.randint(1, 9))
        case _:
            ranges = {"few": (2, 12), "many": (13, 60), "hundreds": (101, 990), "thousands": (1_000, 96_000)}
            years = {"year": (1790, 1900), "later": (1905, 1949), "latest": (1950, 2020)}
            return str(rng.randint(*(ranges | years)[kind]))


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
