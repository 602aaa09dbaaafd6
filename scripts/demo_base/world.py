"""What is true in the little world of the demo base: one table per kind of fact.

Every story, question and task reads from here, so that the sky has the same colour everywhere.
"""

from typing import NamedTuple

from grammar import words


class Animal(NamedTuple):
    """One kind of animal. Empty text means: no such fact is told."""

    name: str
    colour: str
    home: str
    food: str
    sound: str
    legs: int
    young: str
    size: int
    """Rank by size: a bigger animal has a bigger rank. Equal ranks are never compared."""


ANIMALS = tuple(
    Animal(*row)
    for row in (
        ("dog", "brown", "in a kennel", "bones", "bark", 4, "puppy", 5),
        ("cat", "grey", "in a house", "fish", "meow", 4, "kitten", 4),
        ("cow", "black and white", "on a farm", "grass", "moo", 4, "calf", 8),
        ("horse", "brown", "in a stable", "hay", "neigh", 4, "foal", 8),
        ("sheep", "white", "in a field", "grass", "bleat", 4, "lamb", 6),
        ("pig", "pink", "in a pigsty", "corn", "oink", 4, "piglet", 6),
        ("duck", "white", "by a pond", "water plants", "quack", 2, "duckling", 4),
        ("hen", "red", "in a henhouse", "seeds", "cluck", 2, "chick", 4),
        ("goat", "white", "on a hill", "leaves", "bleat", 4, "kid", 6),
        ("donkey", "grey", "on a farm", "hay", "bray", 4, "foal", 7),
        ("lion", "yellow", "on the plains", "meat", "roar", 4, "cub", 7),
        ("tiger", "orange and black", "in the jungle", "meat", "roar", 4, "cub", 7),
        ("bear", "brown", "in a cave", "honey", "growl", 4, "cub", 8),
        ("wolf", "grey", "in the forest", "meat", "howl", 4, "pup", 6),
        ("fox", "orange", "in a den", "berries", "yelp", 4, "cub", 5),
        ("frog", "green", "in a pond", "flies", "croak", 4, "tadpole", 2),
        ("fish", "silver", "in the water", "tiny plants", "", 0, "", 2),
        ("bird", "blue", "in a nest", "worms", "sing", 2, "chick", 2),
        ("owl", "brown", "in a hollow tree", "mice", "hoot", 2, "owlet", 4),
        ("crow", "black", "in a tall tree", "corn", "caw", 2, "chick", 4),
        ("swan", "white", "on a lake", "water plants", "hiss", 2, "", 5),
        ("bee", "yellow and black", "in a hive", "nectar", "buzz", 6, "", 1),
        ("ant", "black", "in an ant hill", "crumbs", "", 6, "", 0),
        ("spider", "black", "in a web", "flies", "", 8, "", 1),
        ("snail", "brown", "in a shell", "leaves", "", 0, "", 1),
        ("rabbit", "brown", "in a burrow", "carrots", "", 4, "bunny", 3),
        ("mouse", "grey", "in a hole", "cheese", "squeak", 4, "", 2),
        ("squirrel", "red", "in a tree", "nuts", "chatter", 4, "", 3),
        ("elephant", "grey", "on the plains", "leaves", "trumpet", 4, "calf", 10),
        ("giraffe", "yellow and brown", "on the plains", "leaves", "", 4, "calf", 9),
        ("zebra", "black and white", "on the plains", "grass", "", 4, "foal", 8),
        ("monkey", "brown", "in the jungle", "bananas", "chatter", 4, "", 5),
        ("camel", "brown", "in the desert", "dry plants", "grunt", 4, "calf", 8),
        ("snake", "green", "in the grass", "mice", "hiss", 0, "", 3),
        ("whale", "blue", "in the sea", "tiny shrimp", "", 0, "calf", 11),
        ("penguin", "black and white", "on the ice", "fish", "", 2, "chick", 5),
        ("turtle", "green", "by the sea", "sea grass", "", 4, "", 4),
        ("kangaroo", "brown", "in Australia", "grass", "", 2, "joey", 6),
    )
)

COLOURS = {
    "blue": "the sky;the sea;a blueberry",
    "green": "the grass;a leaf;a frog;a pea;a cucumber;a lime;a pine tree;a cabbage",
    "white": "snow;milk;salt;a swan;a snowman;a cloud;flour;rice",
    "yellow": "the sun;a banana;a lemon;butter;corn;a sunflower",
    "red": "a tomato;a strawberry;a cherry;a fire engine;a ladybird;a stop sign;a raspberry",
    "orange": "a carrot;a pumpkin;an orange",
    "black": "coal;a crow;a tyre;the night sky",
    "brown": "chocolate;mud;a tree trunk;a bear;toast;soil",
    "pink": "a pig;a flamingo",
    "grey": "an elephant;a rain cloud;smoke;a mouse;a stone",
    "purple": "a plum;a grape;an aubergine",
    "gold": "honey;a wedding ring",
}

OPPOSITES = tuple(
    pair.split("/")
    for pair in words(
        "big/small hot/cold up/down fast/slow day/night happy/sad open/closed full/empty wet/dry old/young "
        "long/short high/low hard/soft light/dark clean/dirty loud/quiet early/late near/far thick/thin "
        "strong/weak good/bad in/out left/right first/last front/back rich/poor sweet/sour yes/no on/off "
        "heavy/light awake/asleep brave/afraid rough/smooth wide/narrow over/under start/finish push/pull "
        "come/go give/take laugh/cry buy/sell win/lose remember/forget north/south east/west summer/winter "
        "friend/enemy question/answer top/bottom"
    )
)

JOBS = {
    "baker": ("bakes bread", "in a bakery"), "teacher": ("teaches children", "in a school"),
    "doctor": ("helps sick people", "in a hospital"), "farmer": ("grows food", "on a farm"),
    "cook": ("makes meals", "in a kitchen"), "pilot": ("flies planes", "in the sky"),
    "sailor": ("sails ships", "on the sea"), "painter": ("paints pictures", "in a studio"),
    "singer": ("sings songs", "on a stage"), "dancer": ("dances to music", "on a stage"),
    "writer": ("writes books", "at a desk"), "gardener": ("looks after plants", "in a garden"),
    "postman": ("brings letters", "in the street"), "firefighter": ("puts out fires", "in a fire station"),
    "vet": ("helps sick animals", "in an animal clinic"), "dentist": ("looks after teeth", "in a clinic"),
    "builder": ("builds houses", "on a building site"), "fisherman": ("catches fish", "on a boat"),
    "librarian": ("looks after books", "in a library"), "bus driver": ("drives a bus", "on the road"),
    "tailor": ("makes clothes", "in a shop"), "miner": ("digs for coal", "in a mine"),
    "astronaut": ("flies into space", "in a spaceship"), "shepherd": ("looks after sheep", "in the hills"),
    "barber": ("cuts hair", "in a barber shop"), "mechanic": ("mends cars", "in a garage"),
    "carpenter": ("makes things from wood", "in a workshop"), "florist": ("sells flowers",
    "in a flower shop"),
    "butcher": ("sells meat", "in a shop"), "nurse": ("cares for sick people", "in a hospital"),
}  # fmt: skip

USES = {
    "a spoon": "eat soup", "a knife": "cut bread", "a fork": "pick up food", "a pencil": "write",
    "a brush": "paint a picture", "a broom": "sweep the floor", "a key": "open a lock", "a cup": "drink tea",
    "a bed": "sleep", "a chair": "sit down", "a book": "read stories", "a clock": "tell the time",
    "an umbrella": "stay dry in the rain", "a hammer": "hit nails", "a saw": "cut wood",
    "a phone": "call a friend",
    "a lamp": "light up a room", "a ladder": "climb up high", "a needle": "sew clothes",
    "soap": "wash your hands",
    "a towel": "dry yourself", "a bag": "carry things", "a boat": "cross the water",
    "a bell": "make a ringing sound",
    "a comb": "tidy your hair", "a shovel": "dig a hole", "a net": "catch fish", "a map": "find your way",
    "scissors": "cut paper", "a toothbrush": "clean your teeth", "a pot": "cook soup",
    "an oven": "bake a cake",
    "a fridge": "keep food cold", "a kettle": "boil water", "a drum": "make music", "a ball": "play games",
    "a blanket": "stay warm", "money": "buy things", "a mirror": "see your face", "a bridge": "cross a river",
    "a candle": "make light", "a bucket": "carry water", "glue": "stick things together",
    "a kite": "play in the wind",
    "a camera": "take photos", "a pillow": "rest your head",
}  # fmt: skip

KINDS = {
    "fruit": "apple banana pear plum cherry grape lemon peach orange strawberry",
    "vegetable": "carrot potato onion cabbage pea turnip leek",
    "animal": "dog cat horse lion tiger bear rabbit elephant",
    "bird": "duck hen owl crow swan penguin parrot",
    "insect": "bee ant fly beetle butterfly",
    "colour": "red blue green yellow purple",
    "toy": "doll kite ball teddy puzzle",
    "flower": "rose tulip daisy sunflower lily",
    "tree": "oak pine willow maple",
    "drink": "milk water tea juice",
    "tool": "hammer saw spade rake",
    "day": "Monday Tuesday Friday Sunday",
    "month": "January April July October",
    "season": "spring summer autumn winter",
    "instrument": "piano drum flute violin guitar",
    "number": "one two seven ten",
}

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = {"spring": "warm", "summer": "hot", "autumn": "windy", "winter": "cold"}

FEELS = {
    "sweet": "sugar;honey;cake;chocolate", "sour": "a lemon;vinegar", "salty": "sea water;salt",
    "cold": "ice;snow", "hot": "fire;the sun;an oven", "hard": "a stone;a brick;iron",
    "soft": "a pillow;wool;a feather",
    "wet": "rain;water", "heavy": "an elephant;a rock", "sharp": "a knife;a needle",
    "round": "a ball;a wheel;the moon",
    "sticky": "glue;jam",
}  # fmt: skip

MADE_OF = {
    "a window": "glass", "a book": "paper", "a chair": "wood", "a table": "wood", "a snowman": "snow",
    "a coin": "metal",
    "a jumper": "wool", "cheese": "milk", "bread": "flour", "toast": "bread", "jam": "fruit",
    "a shoe": "leather",
    "a house": "bricks", "a nail": "metal", "a bottle": "glass", "a candle": "wax", "butter": "milk",
    "a tyre": "rubber",
}  # fmt: skip

SHOPS = {
    "bread": "at the bakery", "a book": "at the bookshop", "flowers": "at the flower shop",
    "fish": "at the fish market",
    "a stamp": "at the post office", "a toy": "at the toy shop", "meat": "at the butcher",
    "medicine": "at the chemist",
    "a train ticket": "at the station", "shoes": "at the shoe shop", "apples": "at the market",
}  # fmt: skip

PARTS = {
    "see": "eyes", "hear": "ears", "smell": "nose", "taste": "tongue", "walk": "feet", "bite": "teeth",
    "clap": "hands",
    "think": "head",
}  # fmt: skip

FAMILY = {
    "mother's mother": "grandmother", "father's father": "grandfather", "mother's sister": "aunt",
    "father's brother": "uncle", "mother's mum": "grandmother", "uncle's son": "cousin",
    "mother's son": "brother",
    "father's daughter": "sister", "aunt's daughter": "cousin", "father's mother": "grandmother",
}  # fmt: skip

PLACES_FOR = {
    "read books": "at the library", "swim": "at the pool", "see wild animals": "at the zoo",
    "watch a film": "at the cinema", "build sandcastles": "at the beach", "learn to read": "at school",
    "catch a train": "at the station", "see old things": "in a museum", "sleep in a tent": "at a campsite",
    "see a doctor": "at the hospital", "post a letter": "at the post office", "cook dinner": "in the kitchen",
    "take a bath": "in the bathroom", "sleep at night": "in the bedroom",
    "play on the swings": "in the playground",
    "borrow a book": "at the library", "catch a plane": "at the airport", "park a car": "in the garage",
}  # fmt: skip

ODD_FACTS = (
    ("What falls from the clouds when it rains?", "Water falls from the clouds when it rains."),
    ("What falls from the sky in winter?", "Snow falls from the sky in winter."),
    ("What do you wear on your feet?", "You wear shoes on your feet."),
    ("What do you wear on your head?", "You wear a hat on your head."),
    ("What do you wear on your hands in winter?", "You wear gloves on your hands in winter."),
    ("What do you need when it rains?", "You need an umbrella when it rains."),
    ("When does the sun rise?", "The sun rises in the morning."),
    ("When does the sun set?", "The sun sets in the evening."),
    ("When can you see the stars?", "You can see the stars at night."),
    ("When do you eat breakfast?", "You eat breakfast in the morning."),
    ("When do you eat dinner?", "You eat dinner in the evening."),
    ("When do you go to bed?", "You go to bed at night."),
    ("What do bees make?", "Bees make honey."),
    ("What do hens lay?", "Hens lay eggs."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do sheep give us?", "Sheep give us wool."),
    ("What do plants need to grow?", "Plants need water and light to grow."),
    ("What grows on an apple tree?", "Apples grow on an apple tree."),
    ("What does ice turn into when it gets warm?", "Ice turns into water when it gets warm."),
    ("What does water turn into when it freezes?", "Water turns into ice when it freezes."),
    ("What comes after the rain?", "A rainbow can come after the rain."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many seasons are in a year?", "There are four seasons in a year."),
    ("How many fingers are on one hand?", "There are five fingers on one hand."),
    ("How many wheels does a car have?", "A car has four wheels."),
    ("How many wheels does a bike have?", "A bike has two wheels."),
    ("How many eyes do you have?", "You have two eyes."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("What shines at night?", "The moon shines at night."),
    ("What shines in the day?", "The sun shines in the day."),
    ("What can birds do with their wings?", "Birds can fly with their wings."),
    ("What is the biggest animal in the sea?", "The whale is the biggest animal in the sea."),
    ("What animal has a long neck?", "A giraffe has a long neck."),
    ("What animal has a long trunk?", "An elephant has a long trunk."),
    ("What animal has stripes?", "A zebra has stripes."),
    ("What animal carries its house on its back?", "A snail carries its house on its back."),
    ("What do fish use to swim?", "Fish use their fins to swim."),
    ("What do trees have on their branches?", "Trees have leaves on their branches."),
    ("What do you drink when you are thirsty?", "You drink water when you are thirsty."),
    ("What do you do when you are tired?", "You sleep when you are tired."),
    ("What do you do when you are hungry?", "You eat when you are hungry."),
    ("What do you say when someone helps you?", "You say thank you when someone helps you."),
    ("What do you say when you meet a friend?", "You say hello when you meet a friend."),
    ("What do you say when you leave?", "You say goodbye when you leave."),
    ("Why do we sleep?", "We sleep because we get tired."),
    ("Why do we wear coats?", "We wear coats because it is cold."),
    ("Why do birds build nests?", "Birds build nests to keep their eggs safe."),
    ("Why do we brush our teeth?", "We brush our teeth to keep them clean."),
)
