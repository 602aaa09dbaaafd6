"""Stories of woods, fields, water and weather."""

from plot import COLOUR, PLACE, Plot

OUTSIDE = (
    Plot(
        "child pair",
        {"thing": "ball;hat;toy car;doll;book;key;teddy;scarf;drum;shoe", "colour": COLOUR, "place": PLACE,
         "where": "under the bed;behind the door;under a bush;in the long grass;behind a tree;on the shelf;"
         "under a bench"
         ";in a box;next to the gate"},
        (
            "[One day, |One morning, |On Sunday, |]{A} went to the {place} with a {colour} {thing}.",
            "?[The {thing} was a present from {H}|{A} loved the {thing} very much|The {thing} was old, but "
            "{he} loved it].",
            "?The sun was [shining|bright|warm] and the sky was blue.",
            "[When it was time to go home|After a while|Later], {A} could not find the {thing}.",
            "[{A} looked [here and there|everywhere], but the {thing} was gone|{A} {was} very sad and "
            "began to cry].",
            '"Where is [my|the] {thing}?" asked {A}.',
            '[{H} said, "Do not worry. Let us look together."|"I will help you," said {H}.|"Think about '
            'where you saw it '
            'last," said {H}.]',
            "?They looked [in the house and in the garden|up and down the path|high and low].",
            "[At last|Then|In the end], {A} found the {colour} {thing} {where}.",
            '["Thank you for your help!" said {A}.|{A} [hugged|thanked] {H} and smiled.|{A} {was} so happy '
            'that {he} '
            "jumped up and down.]",
            "?From that day on, {A} [took good care of the {thing}|always knew where the {thing} was].",
        ),
    ),
    Plot(
        "child pair animal",
        {"food": "apple;cake;sandwich;pear;cookie;pie;banana;piece of bread",
         "place": "park;garden;forest;meadow;shade;tall grass"},
        (
            "[One day, |One morning, |At noon, |]{A} sat in the {place} with a [big|tasty|fresh] {food}.",
            "?It was [warm|sunny|quiet], and {A} {was} hungry.",
            "[Then {a_G} came by|Just then, {a_G} came along the path]. {G} looked [sad|tired|thin|hungry].",
            '["What is wrong?" asked {A}.|"Hello," said {A}. "Are you hungry?"]',
            '["I have not eaten all day," said {G}.|"I am so hungry," said {G}.|"I lost my lunch," said '
            '{G}.]',
            "?{A} thought about it for a moment.",
            "{A} [cut the {food} in two and gave half to {G}|gave {G} half of the {food}|shared the {food} "
            "with {G}].",
            "[They ate together in the sun|They sat side by side and ate]. [It tasted very good|The {food} "
            "was sweet and fresh|They left only a few crumbs].",
            '"[Thank you|You are very kind]," said {G}. "[I will never forget this|Now we are friends|Next '
            'time I will '
            'bring you {g_food}]."',
            "?{A} {was} [happy|glad] because [sharing is good|{he} had made a new friend|{G} was happy].",
        ),
    ),
    Plot(
        "child pair",
        {"play": "play football;fly a kite;have a picnic;ride bikes;pick flowers;play ball",
         "place": "park;beach;lake;meadow;hill;garden;field"},
        (
            "[[One day, |On Saturday, |]{A} wanted to {play} and went to the {place}|[One day, |]{A} went "
            "to the {place} to {play}].",
            "?At first, the sky was blue and the sun was warm.",
            "[Then|Soon|But then] [grey clouds came|the wind began to blow|the sky grew dark], and it "
            "began to rain.",
            "[The rain fell faster and faster|Big drops fell on the ground], and {A} got [very|all] wet.",
            '["Oh no!" said {A}. "We must get out of the rain."|"Quick, run!" said {A}.|"I am cold," said '
            '{A}.]',
            "{A} [ran under a big tree|hid in an old barn|ran home as fast as {he} could|found a dry place "
            "under a bridge].",
            "?{H} came with [an umbrella|a warm coat|a dry towel] and [a smile|a kind word].",
            "[After the rain|When the rain stopped,|At last the rain stopped, and] there was a rainbow in "
            "the sky.",
            '"[Look, how beautiful|Look at all the colours|What a big rainbow]!" said {A}.',
            "Then {A} [jumped in the puddles and laughed|went back to {play}|went home and drank hot "
            "[milk|tea]].",
        ),
    ),
    Plot(
        "child pair",
        {"baby,trouble,fix": "kitten/stuck in a tall tree/brought a ladder;bird/lying under its nest/put "
        "it back in the nest;"
         "duckling/lost in the long grass/carried it to the pond;puppy/stuck in the mud/pulled it out;"
         "lamb/caught in a bush/opened the branches;rabbit/stuck under a gate/lifted the gate;"
         "owl/shut in a barn/opened the door", "place": PLACE},
        (
            "[One day, |One evening, |]{A} [went to the {place} and heard a [soft|strange|small] "
            "sound|heard a [soft|strange|small] sound near the {place}].",
            '"[What is that|Who is there|Did something cry]?" {he} asked.',
            "It was a [little|tiny] {baby}. The {baby} was {trouble}.",
            "?The {baby} was [cold and afraid|very tired|shaking with fear].",
            "{A} [ran to {H} for help|called {H}|asked {H} what to do].",
            "Together they {fix}, and the {baby} was [safe|free].",
            "?{A} gave the {baby} some water.",
            "[Soon its mother came|Its mother was waiting|Then its mother called], and the {baby} went to "
            "her at once.",
            '"[Goodbye, little {baby}|Take care, little {baby}|Be safe]!" said {A}.',
            "?{A} {was} [happy|proud] all day because {he} had helped.",
        ),
    ),
    Plot(
        "animal",
        {"trouble,way": "fell into a deep hole/let down a long branch;was caught in a net/cut the net;"
         "had a thorn in the foot/pulled out the thorn;could not cross the river/showed a bridge of stones;"
         "could not find the way home/showed the way;was stuck in the mud/pulled very hard"},
        (
            "[One day|One morning|In the afternoon], {A} went for a walk [near {his} home|under the "
            "trees|along the river].",
            "On the way {he} met {a_G}. [{G} did not say hello|\"You are too small to help anyone,\" said "
            "{G}|\"Go away,\" said {G}].",
            "?{A} {was} sad, but {he} walked on.",
            "[Later that day|The next day|In the evening], {G} {trouble}.",
            '"[Help|Please help me]!" [cried|called|shouted] {G}.',
            "{A} heard {g_him} and came [at once|as fast as {he} could|quickly]. {A} {way}, and soon {G} "
            "was safe.",
            '"[Why did you help me|Why are you so kind to me]?" asked {G}. "[I was not nice to you|I was '
            'rude to you]."' ,
            '"[Everyone needs help sometimes|That does not matter now|A friend helps]," said {A}.',
            "[From that day on|After that], {A} and {G} were [good|best] friends.",
        ),
    ),
    Plot(
        "child pair",
        {"place,find,do": "beach/a shiny shell/built a castle of sand;mountains/a smooth stone/climbed to "
        "the top;"
         "zoo/a striped feather/looked at the lions;forest/a big pine cone/followed a narrow path;"
         "lake/a round pebble/rowed a small boat;farm/a warm egg/fed the hens;river/a little frog/threw "
         "stones",
         "go": "by train;by bus;by car;on foot;by bike"},
        (
            "[In summer, |On Sunday, |One bright day, |]{A} went to the {place} with {H}.",
            "They went {go} and took [bread and cheese|apples and water|cake and juice] with them.",
            "?It was a long way, but {A} {was} not tired.",
            '"[Are we there yet|How far is it]?" asked {A}. "[Very soon|Not far]," said {H}.',
            "At the {place}, they {do} and had a lot of fun.",
            "Then {A} found {find}. \"[Can I keep it|May I take it home]?\" {he} asked.",
            "\"[Of course|Yes, you can|Let us look at it first],\" said {H}.",
            "?They sat down and ate the food in the sun.",
            "[When the sun went down|In the evening], they went home {go}.",
            "{A} [fell asleep at once|{was} tired but happy|talked about the {place} for days].",
        ),
    ),
    Plot(
        "child pair animal",
        {"colour": COLOUR, "thing,up": "kite/in a tall tree;ball/on the roof;balloon/on a high branch;"
        "paper plane/on top of the barn"},
        (
            "{A} had a {colour} {thing}. [It was new|{A} played with it every day].",
            "[One windy day|One day|In autumn], the wind [blew hard|was strong] and took the {thing} away.",
            "The {thing} flew up and landed {up}.",
            '"[Oh no|Come back]!" cried {A}. {A} jumped, but {he} could not reach it.',
            "[Then|Soon] {a_G} came by. \"[Can I help you|What is the matter]?\" asked {G}.",
            '"[My|The] {thing} is {up}," said {A}.',
            "{G} [climbed up|went up slowly|found a long stick] and [got the {thing}|brought the {thing} "
            "down].",
            '"Thank you, thank you!" said {A}. [They played together all day|They played until the sun '
            'went down].',
        ),
    ),
    Plot(
        "animal",
        {"wish,see": "see the sea/big and blue;see the snow/white and cold;see the moon up close/round and "
        "bright;"
         "see the big city/loud and full of lights", "adj": "long;hard;steep"},
        (
            "{A} had one wish. {A} wanted to {wish}.",
            '"It is too far," said {a_G}. "Stay at home [and rest|with us]."',
            "[But {A} did not listen|But {A} packed a little bag], and [one morning|the next day] {he} set "
            "off.",
            "It was a {adj} [walk|way]. {A} walked [all day and all night|over hills and through fields].",
            "?{A} {was} tired, and {his} feet hurt.",
            "[At last|After three days|In the end] {A} got to the top of a hill and looked down.",
            "There it was, {see}. {A} [could not stop looking|smiled a big smile|sat down and looked for a "
            "long time].",
            "Then {he} went home and told {G} [everything|all about it].",
            '"[Next time I will come too|Take me with you next time]," said {G}.',
        ),
    ),
)  # fmt: skip
