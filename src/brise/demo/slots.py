"""Values of the slots: what is said, and the argument that it means.

A closed slot has a few meanings, each said in several ways. An open slot is copied as it was said. Values in `held_out`
come in no training traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Said = tuple[str, object]  # words, and the argument's value


@dataclass(frozen=True)
class Slot:
    """The argument it fills, and what may be said."""

    argument: str
    seen: Sequence[Said]
    held_out: Sequence[Said]
    is_open: bool = False  # copied letter by letter: noise leaves it alone


def _open(argument: str, seen: str, held_out: str) -> Slot:
    def split(text: str) -> Sequence[Said]:
        values = [" ".join(value.split()) for value in text.split(",")]
        return tuple((value, value) for value in values)

    return Slot(argument, split(seen), split(held_out), is_open=True)


def _closed(argument: str, meanings: Mapping[object, str], held_out: Mapping[object, str]) -> Slot:
    def split(table: Mapping[object, str]) -> Sequence[Said]:
        return tuple((words.strip(), value) for value, text in table.items() for words in text.split(","))

    return Slot(argument, split(meanings), split(held_out))


_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")


def number_words(value: int) -> str:
    """21 as 'twenty one'."""
    if value < 20:
        return _UNITS[value]
    if value == 100:
        return "a hundred"
    tens, unit = divmod(value, 10)
    return _TENS[tens - 2] + (f" {_UNITS[unit]}" if unit else "")


def _numbers(argument: str, values: Sequence[int], units: Sequence[str], held_out: Sequence[str]) -> Slot:
    def said(forms: Sequence[str]) -> Sequence[Said]:
        return tuple((form.format(digits=value, words=number_words(value)), value)
                     for value in values for form in forms)

    return Slot(argument, said(units), said(held_out))


SLOTS: Mapping[str, Slot] = {
    "celsius": _numbers("celsius", range(16, 29),
                        ("{digits}", "{digits} degrees", "{words} degrees", "{digits} celsius", "{words}"),
                        ("{digits} degrees celsius", "exactly {digits}")),
    "zone": _closed("zone", {
        "driver": "for me,on my side,for the driver,on the driver side,at the driver's seat",
        "passenger": "for my passenger,on the passenger side,for the passenger,on the right side",
        "rear": "in the back,for the kids,in the rear,for the back seats",
        "all": "everywhere,for everyone,in the whole car,for all of us"}, {
        "driver": "for the one who drives", "passenger": "for the person next to me", "rear": "behind us",
        "all": "in every zone"}),
    "seat": _closed("seat", {
        "driver": "my,the driver,the driver's", "passenger": "the passenger,the front passenger,the passenger's",
        "rear_left": "the rear left,the back left,the left rear",
        "rear_right": "the rear right,the back right,the right rear"}, {
        "driver": "this", "passenger": "my passenger's", "rear_left": "the left back", "rear_right": "the right back"}),
    "heat": _closed("level", {1: "one,1,low", 2: "two,2,medium", 3: "three,3,high,full"},
                    {1: "the lowest", 3: "the maximum"}),
    "window": _closed("window", {
        "driver": "my window,the driver's window,the window on my side",
        "passenger": "the passenger window,the window of my passenger,the passenger's window",
        "rear": "the rear windows,the back windows,the windows in the back",
        "all": "all windows,all the windows,every window", "roof": "the sunroof,the roof,the glass roof"}, {
        "driver": "the driver side window", "passenger": "the window on the passenger side",
        "rear": "both rear windows", "all": "the windows", "roof": "the roof window"}),
    "light": _closed("light", {
        "reading": "the reading light,the reading lamp,the map light",
        "fog": "the fog lights,the fog lamps,the front fog lights", "high_beam": "the high beam,the full beam",
        "hazard": "the hazard lights,the hazards,the warning lights"}, {
        "reading": "the little reading light", "fog": "fog lights", "high_beam": "high beams",
        "hazard": "the emergency flashers"}),
    "color": _open("color", "blue,red,green,orange,violet,white,pink,yellow,warm white,turquoise",
                   "purple,teal,amber,cool blue"),
    "avoid": _closed("avoid", {
        "tolls": "tolls,toll roads,paying toll", "highways": "highways,motorways,the highway",
        "ferries": "ferries,the ferry,boats"}, {"tolls": "anything with a toll", "highways": "big roads"}),
    "kind": _closed("kind", {
        "charger": "a charger,a charging station,a place to charge", "parking": "parking,a car park,a parking space",
        "restaurant": "a restaurant,a place to eat,something to eat", "cafe": "a cafe,coffee,a coffee shop",
        "supermarket": "a supermarket,a grocery store", "pharmacy": "a pharmacy,a chemist",
        "toilet": "a toilet,a rest room", "hotel": "a hotel,a place to sleep"}, {
        "charger": "a fast charger", "parking": "a parking garage", "restaurant": "a good restaurant",
        "cafe": "an espresso bar", "supermarket": "groceries", "toilet": "a bathroom",
        "hotel": "a room for the night"}),
    "where": _closed("where", {
        "nearby": "nearby,near here,around here,close by", "on_route": "on the way,along the route,on our route",
        "at_destination": "at the destination,near the destination,where we are going"}, {
        "nearby": "in this area", "on_route": "along the way", "at_destination": "when we get there"}),
    "level": _numbers("level", range(1, 31), ("{digits}", "{words}"), ("number {digits}",)),
    "charge": _numbers("percent", range(50, 101, 5), ("{digits} percent", "{words} percent", "{digits}%"),
                       ("{digits} per cent",)),
    "place": _open("to", """the airport,the office,home,Basel,Lyon,the train station,Elm Street 12,the Riverside Mall,
        Munich,Oak Avenue,the city hospital,the old harbour,Kings Road 40,Geneva,the football stadium,Hill Street 7,
        the university,Bruges,the opera,Lake Park,Station Road 3,Porto,the north gate,Maple Lane 21,the town hall,
        Ghent,the ski lift,Mill Road 9,the zoo,Verona,the harbour,Church Street 15,the tennis club,Salzburg,
        the garden centre,Bridge Street 2,the museum of art,Tallinn,Queen Street 33,the cinema,the school,Utrecht""",
        """the swimming pool,Antwerp,Cedar Road 18,the central library,Bologna,the ice rink,Park Street 5,Nantes,
        the south gate,Willow Lane 30,the music hall,Krakow"""),
    "contact": _open("contact", """Anna,Ben,Clara,David,my mother,Emil,Fatima,Grace,my brother,Hugo,Ines,Jonas,Karim,
        Lena,the dentist,Marco,Nadia,Oscar,my boss,Paula,Ravi,Sofia,Tom,the garage,Uma,Victor,my wife,Wanda,Yusuf,
        Zoe,the school,Doctor Klein,Mister Adams,my sister,Henry,Lucia,Pedro,Amira""",
        """Bruno,Elena,my father,Felix,Gloria,the plumber,Ivan,Judith,Miriam,Doctor Weiss,Stefan,Noor"""),
    "music": _open("what", """jazz,the Beatles,classical music,the news,Mozart,techno,Radio Four,Miles Davis,
        my driving playlist,reggae,Adele,the morning show,blues,Queen,Vivaldi,country music,the science podcast,
        Nina Simone,hip hop,David Bowie,an audio book,folk songs,Daft Punk,Radio Paradise,Bach,soul,the football match,
        Edith Piaf,rock from the seventies,my favourites,Coldplay,piano music,the history podcast,salsa,Amy Winehouse,
        children's songs""",
        """Chopin,funk,Radio Nova,Johnny Cash,bossa nova,the evening news,Bob Marley,the cooking podcast,Beethoven,
        Ella Fitzgerald"""),
    "news": _open("text", """I am late,we are on our way,I will be there at six,dinner is ready,the meeting is moved,
        I am stuck in traffic,we leave now,I can't come today,the parcel has arrived,I will call later,we need milk,
        the train is delayed,I am almost there,the car is charged,happy birthday,we have arrived,see you tomorrow,
        I am in a meeting,the kids are asleep,please wait for me,I found your keys,we take the next exit""",
        """I am running late,the flight has landed,we are five minutes away,I bought the tickets,lunch is at noon,
        the shop is closed"""),
    "country": _open("", "Peru,Norway,Kenya,Japan,Chile,Poland,Egypt,Canada,Vietnam,Greece",
                     "Mongolia,Iceland,Ghana,Ecuador"),
    "topic": _open("", """black holes,the sea,cats,democracy,bicycles,bread,the French Revolution,whales,chess,
        volcanoes,paper,love,dinosaurs,the internet,clouds,bees""", "glaciers,the piano,owls,printing,the Vikings"),
    "dish": _open("", "lasagne,sushi,a pizza,pancakes,paella,tomato soup,a curry,dumplings",
                  "risotto,an omelette,falafel"),
}
