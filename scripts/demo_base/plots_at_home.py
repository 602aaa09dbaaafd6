"""Stories of the house, the garden, the school and the shop."""

from plot import COLOUR, Plot

AT_HOME = (
    Plot(
        "child",
        {"skill,first,fault": "ride a bike/got on the bike/fell off;swim/jumped into the pool/swallowed "
        "some water;"
         "bake bread/mixed flour and water/burned the bread;draw a horse/took a pencil/drew a horse with "
         "five legs;"
         "play the piano/sat down at the piano/played the wrong notes;skate/went out on the ice/slipped "
         "and fell;"
         "whistle/took a deep breath/made no sound at all;tie a knot/took a piece of string/made a big mess;"
         "read/opened a book/did not know the words"},
        (
            "{A} wanted to learn to {skill}, but {he} did not know how.",
            "[One day|On Monday|After school], {A} {first} and tried, but {he} {fault}.",
            "{A} tried [again|once more], and {he} {fault} again.",
            '["It is too hard," said {A}.|"I will never learn it," {he} cried.|{A} {was} sad and wanted to '
            'stop.]',
            '{H} saw {him} and said, "[Do not give up|Try a little every day|I will show you how|Take your '
            'time]."',
            "[So {A} practised every day|Every day, {H} helped {him}|So {A} tried again and again].",
            "?Some days were hard, and some days were easy.",
            "[After a week|In the end|At last|One morning], {A} could {skill} [all alone|very well|without "
            "any help].",
            '"[I can do it|Look at me|I did it]!" {he} [shouted|cried|called].',
            "{H} was very proud of {him}.",
            "?{A} learned that [hard work helps|it is good to keep trying|nobody learns in one day].",
        ),
    ),
    Plot(
        "child pair",
        {"gift": "cake;card;scarf;picture;song;kite;necklace;basket of fruit", "colour": COLOUR},
        (
            "[Tomorrow was the birthday of {H}|It was the birthday of {H}|{H} had a birthday in May].",
            "{A} wanted to give {h_him} [something nice|a surprise|a present], but {he} had [no money|only "
            "one coin].",
            '?"What is a good gift for {H}?" asked {A}.',
            "[Then {A} had an idea|{A} thought and thought|{A} sat down and thought]. {A} made a {gift} "
            "[with {his} own hands|all by {himself}|in the kitchen].",
            "?It took [all day|a long time|the whole morning], but {A} did not stop.",
            "{A} put the {gift} in a {colour} box and [hid it under the bed|tied it with string|carried it "
            "to the table].",
            '"[Happy birthday|This is for you]!" said {A}.',
            "{H} opened the {colour} box and [smiled|laughed|clapped {h_his} hands].",
            '"[This is the best {gift} of all|I love this {gift}|What a lovely {gift}]," said {H}. "Thank '
            'you!"',
            "?Then they all [ate and sang|danced and played|sat down to dinner] until it was dark.",
        ),
    ),
    Plot(
        "child",
        {"thing,break": "cup/dropped it on the floor;vase/knocked it off the table;plate/dropped it in the "
        "kitchen;"
         "window/hit it with a ball;lamp/ran into it;clock/let it fall"},
        (
            "[One day|One afternoon], {A} {was} playing in the house. [{H} had said, \"Do not run "
            "inside.\"|]",
            "{A} saw the {thing} too late and {break}. The {thing} broke.",
            "{A} {was} [afraid|scared]. [\"What will happen now?\" {he} thought.|{he} wanted to hide.]",
            "?{A} [sat down on the stairs|hid behind the chair] and [thought|cried a little].",
            "[Then|After a while] {H} came in and saw the broken {thing}.",
            '"[What happened|Who did this]?" asked {H}.',
            '"[I did it|It was me]," said {A}. "I am sorry."',
            '"[Thank you for telling the truth|The truth is worth more than a {thing}|I am glad that you '
            'told me]," said {H}.',
            "Together they [picked up the pieces|cleaned the floor|mended it with glue].",
            "?[After that|From then on], {A} was more careful.",
        ),
    ),
    Plot(
        "child pair animal",
        {"plant,grew": "carrot/big and orange;pumpkin/round and orange;tomato/red and sweet;sunflower/tall "
        "and yellow;"
         "apple tree/green and strong;strawberry/red and sweet;bean/long and green;rose/red and lovely"},
        (
            "[In spring, |One spring day, |]{A} [found a small seed|had one little seed].",
            "{A} [dug a hole and put the seed in the ground|planted the seed in the garden].",
            "[Every day|Every morning|Each day] {A} gave it water, and the sun kept it warm.",
            "?For a long time nothing happened. [\"Grow, little seed,\" said {A}.|But {A} did not give up.]",
            "[Then|One morning|After two weeks] a tiny green leaf came out of the ground.",
            "?[Rain fell and the sun shone|The days grew longer], and the plant grew and grew.",
            "By [summer|autumn], the {plant} was {grew}.",
            '"[Look how it grew|See what a little seed can do]!" said {A}.',
            "?[{A} showed it to everyone|Everyone came to see the {plant}|A bird came and sang beside it].",
            "{A} {was} [proud|glad] because {he} had waited.",
        ),
    ),
    Plot(
        "child animal",
        {"noise,cause": "tap, tap, tap/a branch on the window;hoo, hoo/an owl in the tree;drip, drip/rain "
        "on the roof;"
         "scratch, scratch/a mouse in the wall;whoosh, whoosh/the wind in the leaves;"
         "bang, bang/a door in the wind"},
        (
            "[One night,|It was late, and] {A} could not sleep.",
            "[It was very dark outside|The moon was behind a cloud|The house was quiet].",
            "[Then|Suddenly] there was a strange sound. It went {noise}.",
            '["Is it a monster?" thought {A}.|"Who is there?" whispered {A}.|{A} {was} afraid and hid.]',
            "?The sound came again: {noise}.",
            "[At last|In the end], {A} [took a deep breath|got up slowly|{was} brave] and went to look.",
            "It was only {cause}.",
            "{A} [laughed|smiled]. \"[How silly of me|There is nothing to fear|So that was it],\" {he} said.",
            "Then {A} [closed {his} eyes|lay down again] and slept until morning.",
        ),
    ),
    Plot(
        "child pair",
        {"one,two,three": "apples/milk/bread;eggs/butter/flour;carrots/onions/potatoes;fish/rice/lemons;"
         "pears/cheese/honey;tea/sugar/cakes", "dish": "soup;cake;pie;dinner;stew"},
        (
            '[One morning|On Friday], {H} said to {A}, "Please go to the market and buy {one}, {two} and '
            '{three}."',
            "{A} took a [big|little] basket and walked to the market.",
            "First {A} bought the {one}. Then {A} bought the {two}.",
            "?The [seller|woman at the stall|man at the stall] was friendly and smiled at {him}.",
            "[But on the way home {A} stopped|But {he} forgot the {three}, and at the gate {he} stopped]. "
            '"[Oh no, the {three}|I forgot the {three}]!" {he} said.',
            "So {A} [ran back|went back] and bought the {three} too.",
            "At home, {H} looked in the basket and [nodded|smiled]. \"{one}, {two} and {three}. [Well "
            "done|Very good]!\"",
            "[Together they made {dish}|Then they cooked {dish}], and it [smelled|tasted] very good.",
        ),
    ),
    Plot(
        "child",
        {"hobby": "draw;sing;read;play chess;climb trees;collect stones;dance", "colour": COLOUR},
        (
            "[It was the first day of school|{A} had moved to a new town|{A} came to a new school].",
            "{A} did not know anyone, and {he} {was} [shy|nervous|quiet].",
            "[At noon|At lunch|In the break], {A} sat alone [on a bench|under a tree|by the wall].",
            "Then a child with a {colour} [hat|coat|bag] came over. \"[Hello|Hi], my name is {F}. What is "
            "your name?\"",
            '"I am {A}," said {A}.',
            '"Do you like to {hobby}?" asked {F}.',
            '"Yes, I love to {hobby}," said {A} [with a smile|happily].',
            "So {A} and {F} [sat together|talked and laughed|went to {hobby} together] until the bell rang.",
            '?At home {H} asked, "How was school?" "[I have a new friend|It was good]," said {A}.',
            "[The next day|From then on|After that], {A} was not afraid of school any more.",
        ),
    ),
    Plot(
        "child pair animal",
        {"spot": "behind a door;under a table;in a big box;behind a tree;in the tall grass;under a blanket"},
        (
            "[One day, |After lunch, |One rainy day, |]{A} played hide and seek with {a_G}.",
            '{G} counted: "One, two, three, four, five!"',
            "{A} hid {spot} and kept very still.",
            "{G} looked [in the kitchen|near the gate|by the wall], but {A} {was} not there.",
            "?{G} looked up and down and all around.",
            "Then {A} [sneezed|laughed|began to giggle], and {G} heard it.",
            '"I found you {spot}!" said {G}.',
            '"[Now it is your turn to hide|Now you hide]," said {A}, and [they played again|the game went '
            'on].',
            "?They played until [it was time for dinner|it was dark|they were both tired].",
        ),
    ),
)  # fmt: skip
