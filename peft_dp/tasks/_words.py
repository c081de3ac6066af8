"""Words of the generated tasks; each is one piece in BERT's uncased vocabulary.

A line in a table of synonyms is one meaning; a slash parts its words. Other
tables say in their comment what the parts of an entry are.
"""

from __future__ import annotations


def _table(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(entry.replace("_", " ").split("/")) for entry in text.split())


# Sentiment: a thing with things one can judge about it.
THINGS = _table("""
    film/acting/plot/script/ending/dialogue/music novel/story/plot/prose/hero/ending/opening
    restaurant/food/service/menu/wine/dessert/soup hotel/room/bed/pool/view/breakfast/lobby
    concert/singer/sound/band/lighting/music/opening play/cast/script/acting/ending/story/lighting
    game/story/music/sound/map/combat/ending album/singing/sound/production/cover/opening/guitar
    museum/guide/shop/display/lighting/garden/collection show/host/music/script/humor/cast/opening""")
GOOD = _table("""great wonderful brilliant charming beautiful superb delightful excellent lovely impressive enjoyable
    fantastic amazing memorable stunning magnificent splendid terrific outstanding incredible pleasant remarkable
    exceptional perfect glorious fabulous satisfying exquisite""")
BAD = _table("""awful terrible horrible dreadful poor boring dull disappointing pathetic miserable inferior bland
    disgusting nasty ridiculous ugly bad weak unpleasant annoying cheap stupid worthless hideous sloppy clumsy lame
    crude""")
JUDGES = _table("""critics friends guests neighbors students brothers sisters cousins teachers colleagues parents
    papers judges tourists locals experts""")

# Synonyms of people and of what people do to each other (past tense = participle).
PEOPLE = _table("""doctor/physician lawyer/attorney boy/lad woman/lady thief/robber teacher/instructor child/kid
    king/monarch policeman/officer boss/manager painter/artist guest/visitor student/pupil reporter/journalist
    singer/vocalist pilot/aviator sailor/seaman priest/clergyman servant/butler cook/chef soldier/trooper
    detective/investigator tourist/traveler salesman/merchant""")
DEEDS = _table("""helped/assisted praised/complimented hired/employed rescued/saved scared/frightened
    amused/entertained fired/dismissed attacked/assaulted hugged/embraced annoyed/irritated fooled/tricked
    supported/backed protected/defended watched/observed insulted/offended chased/pursued captured/caught
    hated/despised admired/respected startled/surprised injured/wounded trained/coached greeted/welcomed
    persuaded/convinced mocked/teased""")
HANDLINGS = _table("""bought/purchased found/discovered repaired/fixed covered/concealed moved/shifted cleaned/washed
    carried/hauled destroyed/wrecked tested/checked dropped/released grabbed/seized inspected/examined
    noticed/spotted pushed/shoved lifted/raised""")
OBJECTS = _table("""car/automobile bike/bicycle lamp/lantern sofa/couch rug/carpet stone/rock coat/jacket cup/mug
    bag/sack photo/photograph phone/telephone present/gift knife/blade pistol/gun chair/seat boat/vessel jewel/gem
    hat/cap letter/note box/crate""")
PLACES = _table("""forest/woods shop/store house/home street/road harbor/port church/chapel garden/yard jail/prison
    cemetery/graveyard station/terminal hospital/clinic factory/plant hotel/inn airport/airfield stadium/arena
    cave/cavern pub/tavern river/stream castle/fortress theater/playhouse""")
TIMES = _table("""at_noon/at_midday at_dawn/at_sunrise at_dusk/at_sunset in_the_fall/in_autumn
    last_night/yesterday_evening on_saturday/at_the_weekend on_christmas_day/at_christmas in_january/after_new_year
    two_days_ago/the_day_before_yesterday in_july/in_the_summer at_lunch/over_lunch all_day/the_whole_day""")

# Inference: one/many of a kind, and one/many of what they all are.
KINDS = _table("""dog/dogs/animal/animals cat/cats/animal/animals horse/horses/animal/animals cow/cows/animal/animals
    lion/lions/animal/animals goat/goats/animal/animals rabbit/rabbits/animal/animals eagle/eagles/bird/birds
    duck/ducks/bird/birds crow/crows/bird/birds owl/owls/bird/birds girl/girls/child/children boy/boys/child/children
    nurse/nurses/person/people farmer/farmers/person/people soldier/soldiers/person/people
    sailor/sailors/person/people lawyer/lawyers/person/people tourist/tourists/person/people
    singer/singers/person/people queen/queens/woman/women""")
# What one does, what one then also does, and what one then cannot do.
ACTS = _table("""running/moving/sleeping sleeping/resting/running walking/moving/lying_down
    drinking_water/drinking/sleeping eating_bread/eating/running racing/running/resting
    jumping_up/jumping/lying_still hurrying_home/moving/standing_still calling_out/making_noise/keeping_quiet
    crying_loudly/making_noise/sleeping lying_asleep/resting/playing chasing_a_ball/playing/resting
    standing_still/standing/jumping climbing_up/climbing/falling_down swimming_fast/swimming/lying_on_the_grass""")
# An adjective and its opposite.
LOOKS = _table("""young/old big/small thin/fat wet/dry dirty/clean noisy/quiet happy/sad brave/afraid healthy/sick
    angry/calm strong/weak hungry/full nervous/relaxed friendly/hostile lazy/busy gentle/fierce""")
NUMBERS = _table("two three four five six seven eight nine ten")

# Acceptability: base, third person, past, participle, -ing.
INTRANSITIVE = _table("""sleep/sleeps/slept/slept/sleeping laugh/laughs/laughed/laughed/laughing
    arrive/arrives/arrived/arrived/arriving fall/falls/fell/fallen/falling smile/smiles/smiled/smiled/smiling
    cry/cries/cried/cried/crying work/works/worked/worked/working wait/waits/waited/waited/waiting
    appear/appears/appeared/appeared/appearing talk/talks/talked/talked/talking
    dream/dreams/dreamed/dreamed/dreaming die/dies/died/died/dying
    speak/speaks/spoke/spoken/speaking stay/stays/stayed/stayed/staying
    live/lives/lived/lived/living rise/rises/rose/risen/rising go/goes/went/gone/going
    lie/lies/lied/lied/lying sit/sits/sat/sat/sitting""")
TRANSITIVE = _table("""need/needs/needed/needed/needing want/wants/wanted/wanted/wanting
    see/sees/saw/seen/seeing forget/forgets/forgot/forgotten/forgetting choose/chooses/chose/chosen/choosing
    find/finds/found/found/finding avoid/avoids/avoided/avoided/avoiding
    love/loves/loved/loved/loving remember/remembers/remembered/remembered/remembering
    describe/describes/described/described/describing touch/touches/touched/touched/touching
    mention/mentions/mentioned/mentioned/mentioning recognize/recognizes/recognized/recognized/recognizing
    hold/holds/held/held/holding like/likes/liked/liked/liking
    draw/draws/drew/drawn/drawing""")
# One, many, and the pronouns that go with one of them and that do not.
SOMEONE = _table("""king/kings/himself/herself queen/queens/herself/himself nun/nuns/herself/himself
    monk/monks/himself/herself father/fathers/himself/herself mother/mothers/herself/himself
    boy/boys/himself/herself girl/girls/herself/himself uncle/uncles/himself/herself wife/wives/herself/himself
    actress/actresses/herself/himself widow/widows/herself/himself brother/brothers/himself/herself
    sister/sisters/herself/himself duke/dukes/himself/herself lady/ladies/herself/himself
    daughter/daughters/herself/himself policeman/policemen/himself/herself""")
GIFTS = _table("book letter ring hat coin flower map key coat lamp cup watch photograph horse guitar camera")
DEGREES = _table("old/older tall/taller rich/richer smart/smarter strong/stronger young/younger poor/poorer")
