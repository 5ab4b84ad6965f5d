"""What the conversations, letters and tables of calibration_text.py are about. Plain knowledge."""

COUNTRIES = [  # country, capital, language, river or mountain, known for, continent, tongue of land
    ("France", "Paris", "French", "the Loire", "bread, cheese and the Louvre", "Europe"),
    ("Japan", "Tokyo", "Japanese", "Mount Fuji", "gardens, trains that run on time and ceramics", "Asia"),
    ("Brazil", "Brasília", "Portuguese", "the Amazon", "coffee, music and rain forest", "South America"),
    ("Egypt", "Cairo", "Arabic", "the Nile", "pyramids and cotton", "Africa"),
    ("Canada", "Ottawa", "English and French", "the Saint Lawrence", "lakes and maple syrup",
     "North America"),
    ("Norway", "Oslo", "Norwegian", "the Glomma", "fjords and long winters", "Europe"),
    ("Kenya", "Nairobi", "Swahili and English", "Mount Kenya", "tea and runners", "Africa"),
    ("Peru", "Lima", "Spanish and Quechua", "the Andes", "potatoes of every colour and Machu Picchu",
     "South America"),
    ("India", "New Delhi", "Hindi and English", "the Ganges", "spices, mathematics and the railway",
     "Asia"),
    ("Italy", "Rome", "Italian", "the Po", "opera, ruins and coffee drunk standing", "Europe"),
    ("Australia", "Canberra", "English", "the Murray", "reefs and marsupials", "Oceania"),
    ("Turkey", "Ankara", "Turkish", "the Euphrates", "tea in small glasses and bazaars", "Asia"),
    ("Portugal", "Lisbon", "Portuguese", "the Tagus", "tiles, cork and sailors", "Europe"),
    ("Vietnam", "Hanoi", "Vietnamese", "the Mekong", "rice terraces and noodle soup", "Asia"),
    ("Ghana", "Accra", "English", "the Volta", "cocoa and bright cloth", "Africa"),
    ("Iceland", "Reykjavík", "Icelandic", "Vatnajökull", "geysers, sagas and wool", "Europe"),
]

SCIENCE = [  # question, short answer, longer answer
    ("Why is the sky blue?",
     "Because air scatters short waves more than long ones.",
     "Sunlight is a mixture of all colours. Molecules of the air are much smaller than a wave of "
     "light, and such small things scatter short waves far more strongly than long ones. So blue "
     "light reaches the eye from every direction of the sky, while red light mostly goes straight "
     "on. In the evening the light has crossed so much air that most of the blue is gone, and what "
     "is left looks orange or red."),
    ("How does a refrigerator keep food cold?",
     "It pumps heat from the inside to the outside.",
     "A liquid with a low boiling point evaporates in thin pipes inside the cabinet. To evaporate it "
     "needs heat, which it takes from the food. A compressor squeezes the vapour, which makes it "
     "hot; in the grille at the back it gives this heat to the room and becomes liquid again. That "
     "is why a refrigerator with an open door warms the kitchen instead of cooling it."),
    ("What causes the tides?",
     "Mostly the Moon's gravity, and to a lesser degree the Sun's.",
     "The Moon pulls more strongly at the near side of the Earth than at its centre, and more weakly "
     "at the far side. The water is therefore stretched into two bulges, and as the Earth turns, a "
     "coast passes through both in about twenty-five hours. When Sun and Moon are in line the two "
     "effects add up and the tide is high; that is a spring tide. At half moon they work against "
     "each other."),
    ("Why do leaves change colour in autumn?",
     "The green pigment is broken down and others show.",
     "Chlorophyll, which is green, is costly for a tree to keep. When days grow short the tree takes "
     "what it can back into the branches. Yellow and orange pigments, which were there all summer, "
     "become visible; red ones are made afresh in some species, perhaps to protect the leaf while it "
     "is being emptied."),
    ("What is the difference between weather and climate?",
     "Weather is what happens today; climate is what one may expect.",
     "Weather is the state of the air at one place and time: rain this afternoon, wind from the "
     "west. Climate is the statistics of weather over decades: how often it rains in April, how cold "
     "a usual January is. A single cold week says little about climate, just as one throw says "
     "little about a die."),
    ("How do vaccines work?",
     "They show the immune system what to look for, without the illness.",
     "A vaccine contains a harmless piece of a germ, or instructions for making one. Cells of the "
     "immune system that happen to fit this piece multiply, and some of them stay for years. If the "
     "real germ comes later, they recognise it at once, and the body answers within days instead of "
     "weeks."),
    ("What is a prime number?",
     "A whole number above 1 that only 1 and itself divide.",
     "2, 3, 5, 7, 11 and 13 are the first. Every whole number above 1 is a product of primes in "
     "exactly one way, apart from the order. There is no largest one: multiply any finite list of "
     "primes and add 1, and the result has a prime factor that is not on the list. That proof is "
     "more than two thousand years old."),
    ("Why does ice float?",
     "Because it is less dense than the water it swims in.",
     "In ice each molecule holds four neighbours at a fixed distance, in an open lattice with much "
     "empty space. When it melts, the lattice breaks down and molecules move closer together. So a "
     "given mass takes about nine per cent more room as ice, and a lake freezes from the top, which "
     "lets fish survive below."),
    ("How does a bicycle stay upright?",
     "By steering into the fall, which a moving bicycle does by itself.",
     "When it leans to the left, the front wheel turns to the left, and the wheels come back under "
     "the weight. The angle of the fork, the mass of the handlebar and a gyroscopic effect all help. "
     "At a standstill nothing of this works, and the rider has to balance alone."),
    ("What does a hash table do?",
     "It finds a value by its key in about constant time.",
     "A function turns each key into a number, which says in which slot of an array to look. Two "
     "keys may get the same slot; then the entries of that slot are searched one by one, or the next "
     "free slot is used. As long as the array is not too full this takes a few steps, however many "
     "entries there are."),
    ("Why do we have leap years?",
     "A year is not a whole number of days.",
     "The Earth needs about 365.2422 days for one turn around the Sun. A calendar of 365 days would "
     "drift by a day every four years, so a day is added in February. That is slightly too much, "
     "therefore years that end in 00 are not leap years unless 400 divides them: 1900 was none, 2000 "
     "was one."),
    ("What is inflation?",
     "A general rise of prices, so that money buys less.",
     "Statisticians follow the price of a basket of goods that a typical household buys. If the "
     "basket cost 100 last year and costs 103 now, inflation is three per cent. Moderate inflation "
     "is usually not felt; wages and rents are adjusted. When it is fast, savings lose their worth "
     "and plans become difficult."),
    ("How are mountains made?",
     "By plates of rock that push against each other.",
     "The crust of the Earth is broken into plates that move a few centimetres a year. Where two "
     "meet, rock is folded and piled up; the Himalayas are still growing that way. Other mountains "
     "are volcanoes, built of what comes up from below. Rain, ice and wind carry them away again at "
     "a similar speed."),
    ("What does a semicolon do?",
     "It joins two sentences that belong together.",
     "Use it where a full stop would be correct but would separate too much; the second part "
     "explains or balances the first. It also separates the items of a list when the items have "
     "commas of their own: Lyon, France; Turin, Italy; Bern, Switzerland."),
    ("How is paper made?",
     "From fibres of wood, mixed with water, spread thin and dried.",
     "Chips of wood are boiled until the fibres come apart. The pulp is washed, sometimes bleached, "
     "and thinned with a great deal of water. It runs onto a moving sieve, where most of the water "
     "drains off and the fibres lock together. Rollers press the sheet, and heated cylinders dry it."),
    ("What is a black hole?",
     "A region from which not even light can leave.",
     "If enough mass is squeezed into a small enough volume, the speed needed to escape exceeds that "
     "of light. From outside nothing is seen of it but its effect on other things: stars that circle "
     "an empty place, gas that glows before it falls in. Some are the remains of heavy stars; the "
     "centre of our galaxy has one of four million solar masses."),
]

DISHES = [  # name, ingredients, steps, minutes
    ("lentil soup", ["250 g red lentils", "1 onion", "2 carrots", "1 tin of tomatoes", "1 l of stock",
                     "1 teaspoon of cumin", "lemon juice"],
     ["Chop the onion and the carrots and soften them in oil.", "Add the cumin and stir for a minute.",
      "Add lentils, tomatoes and stock, and simmer until the lentils fall apart.",
      "Season with salt and lemon juice."], 35),
    ("pancakes", ["200 g flour", "2 eggs", "400 ml milk", "a pinch of salt", "butter for the pan"],
     ["Whisk flour, salt and eggs with half of the milk until smooth.", "Stir in the rest of the milk.",
      "Let the batter rest for twenty minutes.", "Fry thin pancakes on both sides in a little butter."], 40),
    ("potato salad", ["1 kg waxy potatoes", "1 red onion", "200 ml hot stock", "3 tablespoons of vinegar",
                      "5 tablespoons of oil", "chives"],
     ["Boil the potatoes in their skins, peel them warm and slice them.",
      "Pour hot stock and vinegar over them and leave them to soak it up.",
      "Fold in the chopped onion, oil and chives.", "Taste again after half an hour."], 50),
    ("an omelette", ["3 eggs", "1 tablespoon of water", "butter", "herbs", "salt and pepper"],
     ["Beat the eggs lightly with the water, salt and pepper.", "Melt butter in a pan until it foams.",
      "Pour in the eggs and draw the edges to the middle as they set.",
      "Fold it while the top is still moist and serve at once."], 8),
    ("rice with vegetables", ["200 g rice", "1 courgette", "1 pepper", "a handful of peas", "2 eggs",
                              "soy sauce", "ginger"],
     ["Cook the rice and let it cool; rice from yesterday is better.", "Fry ginger and vegetables quickly.",
      "Push them aside and scramble the eggs in the same pan.", "Add the rice and soy sauce and toss."], 25),
    ("bread", ["500 g flour", "350 ml lukewarm water", "10 g salt", "half a sachet of dry yeast"],
     ["Mix everything to a rough dough and leave it for half an hour.", "Fold it four times, an hour apart.",
      "Shape a loaf and let it rise in a floured cloth.",
      "Bake it in a hot covered pot for thirty minutes and uncovered for fifteen more."], 300),
    ("tomato sauce", ["800 g ripe tomatoes", "2 cloves of garlic", "olive oil", "basil", "a little sugar"],
     ["Warm the garlic in plenty of oil without letting it brown.", "Add the chopped tomatoes and salt.",
      "Simmer without a lid until it thickens.", "Tear the basil over it at the end."], 45),
    ("an apple crumble", ["6 apples", "100 g butter", "150 g flour", "80 g sugar", "cinnamon"],
     ["Peel and slice the apples and put them into a dish with cinnamon.",
      "Rub butter, flour and sugar together with the fingertips.", "Scatter the crumbs over the apples.",
      "Bake until the top is golden and the juice bubbles at the edge."], 55),
]

WORDS = [  # word, meaning, sentence
    ("meticulous", "very careful about details", "The accountant kept meticulous records."),
    ("ambiguous", "open to more than one reading", "His answer was ambiguous, perhaps on purpose."),
    ("reluctant", "not willing, hesitating", "She was reluctant to sell her grandmother's piano."),
    ("frugal", "careful with money and things", "They lived a frugal life and missed nothing."),
    ("obsolete", "no longer in use", "The machine still works, but its spare parts are obsolete."),
    ("candid", "honest and direct", "Thank you for your candid opinion of the draft."),
    ("dwindle", "to become gradually less", "Our supplies dwindled as the winter went on."),
    ("plausible", "likely to be true at first sight", "It is a plausible story, but who can confirm it?"),
    ("serene", "calm and untroubled", "The lake lay serene under a pale sky."),
    ("futile", "without any chance of success", "It was futile to argue with the ticket machine."),
    ("thrive", "to grow and do well", "Ferns thrive in the shade of that wall."),
    ("precarious", "not safe, likely to fall", "He kept his balance on a precarious heap of boxes."),
]

PHRASES = [  # English, French, German, Spanish
    ("Where is the station?", "Où est la gare ?", "Wo ist der Bahnhof?", "¿Dónde está la estación?"),
    ("I would like a coffee, please.", "Je voudrais un café, s'il vous plaît.",
     "Ich hätte gern einen Kaffee, bitte.", "Quisiera un café, por favor."),
    ("The book is on the table.", "Le livre est sur la table.", "Das Buch liegt auf dem Tisch.",
     "El libro está sobre la mesa."),
    ("It is raining today.", "Il pleut aujourd'hui.", "Heute regnet es.", "Hoy llueve."),
    ("How much does this cost?", "Combien ça coûte ?", "Wie viel kostet das?", "¿Cuánto cuesta esto?"),
    ("We will arrive tomorrow evening.", "Nous arriverons demain soir.", "Wir kommen morgen Abend an.",
     "Llegaremos mañana por la noche."),
    ("My sister lives in the country.", "Ma sœur habite à la campagne.",
     "Meine Schwester wohnt auf dem Land.", "Mi hermana vive en el campo."),
    ("Could you speak more slowly?", "Pourriez-vous parler plus lentement ?",
     "Könnten Sie langsamer sprechen?", "¿Podría hablar más despacio?"),
]

NAMES = ["Anna", "Ben", "Clara", "David", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kavita", "Liam",
         "Marta", "Nikos", "Olga", "Pavel", "Quinn", "Rosa", "Samir", "Tomoko", "Umar", "Vera", "Wanda",
         "Yusuf"]
SURNAMES = ["Abbott", "Brandt", "Castillo", "Dubois", "Eriksen", "Fischer", "Goldberg", "Haddad", "Iwata",
            "Jensen", "Kowalski", "Laurent", "Mensah", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Singh",
            "Tanaka"]
THINGS = ["apples", "pencils", "tickets", "stamps", "bottles", "chairs", "books", "lamps", "tiles", "buttons",
          "cups", "screws", "towels", "postcards", "eggs", "candles"]
PLACES = ["the library", "the harbour", "the museum", "the market", "the station", "the old mill",
          "the school",
          "the town hall", "the botanical garden", "the swimming pool"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]
