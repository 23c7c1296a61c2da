"""What is known about the words of the original data sets: which are too near to face each other, and spare ones.

Two words are too near if they mean nearly the same, if one is a kind of the other, or if a picture of one is as a
rule a picture of the other too (a shattered cup is broken). Such words are never the two answers of a question,
and never replace each other. The tables cover the words that occur often; they are judgements, not measurements,
and a word that stands in no table is near to its own forms alone.

Costs nothing. Knows no picture and no model.
"""

from hooked_vlm.datasets.replacements import Related


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STATES: tuple[str, ...] = _words(
    """ancient barren bent blunt bright broken browned brushed burnt caramelized chipped clean clear closed cloudy
    cluttered coiled cooked cored cracked creased crinkled crumpled crushed curved cut damp dark deflated dented
    diced dirty draped dry dull empty engraved eroded fallen filled foggy folded frayed fresh frozen full grimy
    heavy huge inflated large lightweight loose mashed melted modern moldy molten mossy muddy murky narrow new old
    open painted peeled pierced pressed pureed raw ripe ripped rough ruffled runny rusty scratched sharp shattered
    shiny short sliced small smooth spilled splintered squished standing steaming straight sunny tall thawed thick
    thin tight tiny toppled torn unpainted unripe upright verdant viscous weathered wet whipped wide wilted
    windblown winding worn wrinkled young"""
)
"""The adjectives of MIT-States (Isola et al., CVPR 2015)."""

NEAR_STATES = Related(
    # damage
    "broken cracked shattered chipped splintered crushed",
    "broken bent dented crushed",
    "bent dented crumpled crushed squished",
    "broken toppled fallen",
    "broken ripped torn",
    "ripped torn frayed cut",
    "frayed worn loose",
    "scratched chipped dented",
    "scratched engraved",
    "pierced cut torn",
    "rough splintered chipped eroded",
    "squished mashed crushed pressed",
    "deflated squished crumpled crushed",
    # age and wear
    "ancient old weathered worn eroded",
    "old worn weathered rusty",
    "cracked eroded weathered",
    "old dirty grimy rusty",
    "old moldy",
    "new modern fresh clean",
    "new young",
    "modern shiny",
    # light and weather
    "bright sunny clear",
    "bright shiny",
    "sunny verdant",
    "dark dull murky",
    "cloudy foggy murky",
    "foggy dark",
    "cloudy dark",
    # dirt, water
    "clean clear fresh",
    "clean shiny smooth",
    "dirty grimy muddy murky",
    "damp wet muddy",
    "wet runny spilled melted thawed",
    "dry barren",
    "dry wilted",
    "barren empty",
    "mossy moldy",
    "mossy verdant",
    "mossy damp",
    # size and form
    "huge large tall wide heavy thick",
    "huge large",
    "small tiny short thin lightweight",
    "small young",
    "narrow thin tight tiny small",
    "curved bent winding coiled",
    "straight upright standing tall",
    "straight smooth",
    "thick viscous heavy",
    "fallen toppled spilled",
    "blunt dull",
    "sharp pierced",
    "smooth pressed brushed shiny",
    "creased crinkled crumpled wrinkled ruffled folded",
    "draped folded loose ruffled",
    "ruffled windblown",
    "closed tight",
    "loose open",
    "open wide",
    "cluttered full filled",
    "full inflated filled",
    "painted engraved brushed",
    # food
    "cooked browned burnt caramelized steaming",
    "cooked melted mashed pureed",
    "raw fresh unripe",
    "ripe fresh",
    "unripe young fresh verdant",
    "cut sliced diced cored peeled",
    "mashed pureed whipped",
    "diced crushed",
    "melted molten runny viscous",
    "pureed runny viscous whipped",
    "melted molten thawed steaming",
    "molten burnt",
    "wilted moldy old",
)

EMOTIONS: dict[str, str] = {
    "anger": "angry",
    "angry": "angry",
    "contempt": "contemptuous",
    "disgust": "disgusted",
    "disgusted": "disgusted",
    "fear": "afraid",
    "fearful": "afraid",
    "afraid": "afraid",
    "happy": "happy",
    "happiness": "happy",
    "joy": "happy",
    "neutral": "neutral",
    "sad": "sad",
    "sadness": "sad",
    "surprise": "surprised",
    "surprised": "surprised",
}
"""Of each folder name that data sets of faces use, the word that fits "is this person feeling ...?"."""

SPARE_EMOTIONS: tuple[str, ...] = _words("calm proud bored tired confused excited jealous lonely nervous shy")
NEAR_EMOTIONS = Related(
    "happy glad joyful cheerful pleased amused delighted excited proud",
    "sad unhappy upset depressed gloomy lonely",
    "angry mad furious annoyed upset jealous",
    "afraid scared fearful frightened anxious worried nervous shy",
    "surprised shocked astonished amazed excited confused",
    "disgusted revolted contemptuous",
    "contemptuous proud",
    "neutral calm bored tired",
)

_PEOPLE = _words("man woman boy girl child kid baby toddler guy lady gentleman male female")
_TRADES = _words(
    """surfer skier skater skateboarder snowboarder player athlete runner rider cyclist biker swimmer dancer singer
    musician guitarist band chef cook worker farmer fisherman doctor nurse soldier policeman officer student
    teacher businessman businesswoman driver painter artist photographer climber hiker bride groom tourist actor
    model mother father parent son daughter brother sister friend couple family team audience crowd group"""
)
_ANIMALS = _words(
    """dog cat horse cow bird sheep goat pig duck elephant giraffe zebra lion tiger bear monkey deer rabbit fox
    chicken kitten puppy seagull eagle swan fish dolphin whale turtle butterfly bee"""
)

NEAR_NOUNS = Related(
    *(f"person people human individual someone adult {one}" for one in (*_PEOPLE, *_TRADES)),
    *(f"{person} {trade}" for trade in _TRADES for person in _PEOPLE),
    *(f"animal pet creature wildlife {one}" for one in _ANIMALS),
    "man guy gentleman male father husband",
    "woman lady female mother wife girl",
    "man boy guy male",
    "child kid boy toddler baby son",
    "child kid girl toddler baby daughter",
    "crowd group audience team people family couple friend",
    "player athlete team runner",
    "musician singer guitarist band",
    "chef cook",
    "policeman officer soldier",
    "rider cyclist biker",
    "mother parent father",
    "dog puppy",
    "cat kitten",
    "horse pony mare foal",
    "cow bull cattle calf herd",
    "bird duck seagull eagle swan chicken gull pigeon",
    "vehicle car truck bus van taxi automobile motorcycle bike bicycle train",
    "car automobile taxi van",
    "bike bicycle",
    "bike motorcycle motorbike scooter",
    "boat ship sailboat canoe kayak yacht vessel",
    "plane airplane aircraft jet",
    "sofa couch",
    "chair seat bench stool armchair",
    "table desk counter",
    "floor ground",
    "sea ocean water wave",
    "river lake stream pond water pool",
    "beach sand shore coast sea ocean",
    "road street highway path sidewalk track lane",
    "field grass meadow lawn pasture",
    "park garden yard grass",
    "forest wood woods tree jungle",
    "mountain hill rock cliff slope",
    "snow ice slope",
    "house home building",
    "city town street",
    "phone telephone cellphone smartphone mobile",
    "computer laptop",
    "food meal dinner lunch breakfast",
    "cup mug glass",
    "bottle drink",
    "wine beer drink glass",
    "coffee tea drink cup",
    "picture photo photograph image",
    "flower plant bouquet rose",
    "ball football basketball soccer baseball tennis volleyball",
    "game sport ball",
    "clothes clothing dress shirt suit jacket",
    "hat cap helmet",
    "stage concert",
    "guitar instrument piano drum violin",
    "book magazine newspaper",
    "stair stairs step staircase",
)
SPARE_SUBJECTS: tuple[str, ...] = _words("man woman boy girl dog cat horse bird cow bear duck fox lion sheep")
SPARE_OBJECTS: tuple[str, ...] = _words("ball chair table car tree phone book boat bed bread dog hat wall road")

NEAR_VERBS = Related(
    "sit rest perch relax lounge squat kneel",
    "lie lay rest sleep recline relax nap",
    "walk stroll hike march wander step cross",
    "run jog sprint race dash chase",
    "jump leap hop bounce dive",
    "look watch view see stare gaze observe",
    "hold carry grab grip clutch grasp take lift",
    "use hold",
    "talk speak chat converse discuss say tell call",
    "eat chew bite dine consume taste",
    "eat graze feed",
    "drink sip",
    "throw toss pitch cast",
    "ride drive pedal bike cycle travel",
    "push shove",
    "pull drag tow",
    "hug embrace cuddle hold",
    "kiss hug embrace",
    "laugh smile grin giggle",
    "cook prepare make bake fry grill",
    "cut chop slice trim",
    "fly soar glide hover",
    "swim float bathe dive",
    "play enjoy compete perform",
    "stand pose wait lean",
    "wait sit",
    "read study look",
    "write draw sign sketch paint",
    "hit strike kick swing punch",
    "climb scale ascend hike",
    "wash clean bathe rinse scrub wipe",
    "sail cruise float row paddle",
    "shout yell scream",
    "sing perform",
    "dance perform",
    "wear dress",
    "cover wear",
    "surf ride",
    "ski slide glide",
    "skate skateboard roll",
    "work type",
    "touch pet stroke feel pat",
    "show point present display",
    "follow chase pursue",
    "teach instruct train",
    "buy shop purchase",
    "fall drop",
    "move go come travel",
    "gather meet assemble",
)
SPARE_VERBS: tuple[str, ...] = _words("sit stand walk run eat sleep jump read swim fly sing kick paint cut")

PARTICIPLES = {"program": "programming", "worship": "worshipping", "kidnap": "kidnapping"}
PARTICIPLES |= {"lie": "lying", "die": "dying", "tie": "tying", "be": "being", "dye": "dyeing", "singe": "singeing"}
"""Of verbs that follow no rule or several, the form in -ing; of all others, lemminflect's."""

PARTICLES = _words("about across around at away back by down for in into off on onto out over through to up with")
"""What follows a verb of two words, whose first word then takes the ending ("picking up")."""
