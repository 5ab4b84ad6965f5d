"""Conversations, letters and lists for calibration_text.py, from the facts of calibration_facts.py."""
from calibration_facts import (COUNTRIES, DISHES, MONTHS, NAMES, PHRASES, PLACES, SCIENCE, SURNAMES,
                               THINGS, WORDS)

SYSTEMS = ["You are a helpful assistant.", "You are a patient teacher. Answer in simple words.",
           "You answer briefly and say so when you do not know something.",
           "You are a librarian who likes precise questions.",
           "You are a careful editor. Keep the author's voice.",
           "You help people in the kitchen. Use metric units.",
           "You are a programming tutor. Prefer short examples."]
LANGUAGES = ("French", "German", "Spanish")
THANKS = ["Thanks!", "Thank you, that helps.", "Great, thank you.", "Perfect. That is all for now."]
WELCOME = ["You're welcome!", "Glad to help. Come back whenever you like.",
           "With pleasure. Good luck!", "You are welcome. Have a good day!"]


def said(role, *texts):
    return [(role, text) for text in texts]


def turns(*texts):
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def numbered(items):
    return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))


def bullets(items):
    return "\n".join(f"- {item}" for item in items)


def about_science(r, topic):
    question, short, long = topic
    ways = [
        turns(question, long),
        turns(f"{question} One sentence, please.", short, "And a little longer?", long),
        turns(f"My {r.choice(['daughter', 'son', 'nephew', 'neighbour'])} asked me: {question.lower()}",
              f"{short} {long}", r.choice(THANKS), r.choice(WELCOME)),
        turns(f"Summarise this text in one sentence.\n\n{long}", short),
        turns(f"I have to explain this in class: {question.lower()[:-1]}. What are the main points?",
              "Here are the main points:\n\n" + bullets(s.strip().rstrip(".") for s in long.split(". "))),
    ]
    return r.choice(ways)


def about_country(r, country):
    name, capital, language, water, known, continent = country
    other = r.choice([c for c in COUNTRIES if c != country])
    ways = [
        turns(f"What is the capital of {name}?", f"The capital of {name} is {capital}.",
              "Which language is spoken there?", f"People there speak {language}.",
              f"And in {other[0]}?", f"In {other[0]} it is {other[2]}; the capital is {other[1]}."),
        turns(f"Tell me three things about {name}.",
              numbered([f"It lies in {continent}, and its capital is {capital}.",
                        f"Many people know it for {known}.",
                        f"If you go there, see {water}."])),
        turns(f"I am planning a week in {name}. Any ideas?",
              f"A week is enough for a first impression. A possible plan:\n\n"
              f"**Days 1 and 2.** Arrive in {capital} and walk; leave the museums for the second day.\n"
              f"**Days 3 to 5.** Travel to {water}. Book a room early in {r.choice(MONTHS)}.\n"
              f"**Days 6 and 7.** Go back slowly and look for {known.split(',')[0].split(' and ')[0]}.\n\n"
              f"A few words of {language.split(' and ')[0]} are always welcome.",
              "How much money should I take?",
              "That depends on the season and on how you like to sleep. Look at the price of two or three "
              "rooms, double it for meals and tickets, and add a reserve of a fifth."),
        turns(f"Which of these is not in {continent}: {name}, "
              f"{r.choice([c[0] for c in COUNTRIES if c[5] != continent])}?",
              f"{name} is in {continent}; the other one is not."),
        turns(f"Write the capitals of {name} and {other[0]} as JSON.",
              f"```json\n{{\n  \"{name}\": \"{capital}\",\n  \"{other[0]}\": \"{other[1]}\"\n}}\n```"),
    ]
    return r.choice(ways)


def about_dish(r, dish):
    name, ingredients, steps, minutes = dish
    people = r.choice([2, 3, 4, 6])
    ways = [
        turns(f"How do I make {name}?",
              f"You need:\n\n{bullets(ingredients)}\n\nThen:\n\n{numbered(steps)}\n\n"
              f"It takes about {minutes} minutes."),
        turns(f"I have {ingredients[0]} and {ingredients[1]} at home. What can I cook?",
              f"You could make {name}. You would also need {', '.join(ingredients[2:])}.",
              "How?", " ".join(steps), f"We are {people}. Is it enough?",
              f"For {people} it is " + ("plenty." if people < 4 else "just enough; make half as "
                                                           "much again if "
                                        "everybody is hungry.")),
        turns(f"How long does {name} take?", f"About {minutes} minutes, of which you work perhaps "
              f"{max(5, minutes // 4)}.", r.choice(THANKS), r.choice(WELCOME)),
    ]
    return r.choice(ways)


def about_word(r, word):
    name, meaning, sentence = word
    return r.choice([
        turns(f"What does \"{name}\" mean?",
              f"*{name.capitalize()}* means {meaning}. For example: {sentence}"),
        turns(f"Use the word {name} in a sentence.", sentence, "Explain it to a child.",
              f"If something is called {name}, it means: {meaning}."),
        turns(f"Is this sentence correct? \"{sentence}\"", "Yes, it is correct. "
              f"The word *{name}* stands here for {meaning}."),
    ])


def about_phrase(r, phrase):
    tongue = r.randrange(1, 4)
    language = LANGUAGES[tongue - 1]
    return turns(f"Translate into {language}: {phrase[0]}", phrase[tongue]) if r.random() < 0.5 else turns(
        f"What does \"{phrase[tongue]}\" mean?", f"It is {language} and means: \"{phrase[0]}\"",
        "How would one say it in the other two languages?",
        bullets(f"{name}: {phrase[i]}" for i, name in enumerate(LANGUAGES, 1) if i != tongue))


def about_sum(r, _):
    a, b, price = r.randrange(12, 99), r.randrange(12, 99), r.randrange(3, 19)
    name, thing = r.choice(NAMES), r.choice(THINGS)
    ways = [
        turns(f"What is {a} times {b}?", f"{a} × {b} = {a} × {b // 10 * 10} + {a} × {b % 10} = "
              f"{a * (b // 10 * 10)} + {a * (b % 10)} = {a * b}."),
        turns(f"{name} buys {a} {thing} at {price} cents each and pays with a 20 euro note. How much is the "
              "change?",
              f"The {thing} cost {a} × {price} = {a * price} cents, which is {a * price / 100:.2f} "
              f"euros. The change is 20.00 − {a * price / 100:.2f} = {20 - a * price / 100:.2f} euros."),
        turns(f"A train leaves at {a % 12 + 6}:{b % 60:02d} and needs {a + 30} minutes. When does it arrive?",
              f"{a + 30} minutes are {(a + 30) // 60} h {(a + 30) % 60} min. {a % 12 + 6}:{b % 60:02d} plus "
              "that "
              f"is {(a % 12 + 6 + (b % 60 + a + 30) // 60)}:{(b % 60 + a + 30) % 60:02d}."),
        turns(f"Sort these numbers: {a}, {b}, {price}, {a + price}.",
              ", ".join(str(x) for x in sorted([a, b, price, a + price]))),
        turns(f"{name} is {a} years old and {r.choice(NAMES)} is {b}. What is their mean age?",
              f"The mean is ({a} + {b}) / 2 = {(a + b) / 2:g} years.", "And the difference?",
              f"|{a} − {b}| = {abs(a - b)} years."),
    ]
    return r.choice(ways)


def about_writing(r, _):
    (name, other), place = r.sample(NAMES, 2), r.choice(PLACES)
    day, month = r.randrange(1, 29), r.choice(MONTHS)
    return r.choice([
        turns(f"Write a short message to {name}: I am late, we meet at {place} at {r.randrange(2, 9)}.",
              f"Hi {name}, I'm running late, sorry! Let's meet at {place} instead. See you there."),
        turns(f"Make this more polite: Send me the report by {day} {month}.",
              f"Could you please send me the report by {day} {month}? Thank you very much."),
        turns(f"Correct the mistakes: Yesterday me and {name} has went to {place}, it were closed.",
              f"Yesterday {name} and I went to {place}, but it was closed.", "What was wrong?",
              bullets(["\"me and\" as a subject should be \"and I\"", "\"has went\" should be \"went\"",
                       "\"it were\" should be \"it was\"", "two sentences were joined by a comma alone"])),
        turns(f"Give me a title for a story about {name}, who finds an old letter in {place}.",
              f"How about \"The Letter from the {place[4:].title()}\"?", "Another one?",
              f"\"What {name} Found\"", "And the first sentence?",
              f"On the {day}th of {month}, between two pages that nobody had opened for sixty years, {name} "
              f"found a letter that began: \"Dear {other}, by the time you read this...\""),
        turns("Does this review sound positive or negative? "
              f"\"We waited an hour at {place}, and the soup was "
              "cold.\"", "Negative."),
        turns(f"Answer with yes or no. Is {month} after {MONTHS[day % 12]} in the year?",
              "Yes." if MONTHS.index(month) > day % 12 else "No."),
    ])


def conversations(r):
    kinds = [(about_science, SCIENCE), (about_country, COUNTRIES), (about_dish, DISHES), (about_word, WORDS),
             (about_phrase, PHRASES), (about_sum, [None] * 10), (about_writing, [None] * 10)]
    all_of_them, seen = [], set()
    while sum(len(text) for talk in all_of_them for _, text in talk) < 78000:
        make, topics = r.choice(kinds)
        talk = make(r, r.choice(topics))
        if str(talk) in seen:
            continue
        seen.add(str(talk))
        if r.random() < 0.35:
            more, others = r.choice(kinds)
            talk = talk + more(r, r.choice(others))
        if r.random() < 0.4:
            talk = [("system", r.choice(SYSTEMS))] + talk
        all_of_them.append(talk)
    return all_of_them


# ---- letters and lists ----------------------------------------------------------------------------

def letter(r):
    writer, reader = r.sample(NAMES, 2)
    surname, place, month = r.choice(SURNAMES), r.choice(PLACES), r.choice(MONTHS)
    day, thing, n = r.randrange(1, 29), r.choice(THINGS), r.randrange(2, 40)
    country, dish = r.choice(COUNTRIES), r.choice(DISHES)
    fact = r.choice(SCIENCE)
    openings = [f"I hope this finds you well. Here it has rained since {month}.",
                f"Thank you for your letter of the {day}th, which reached me only today.",
                f"You asked how things are going. Better than in {month}, I must say."]
    middles = [
        f"Last week we were in {country[0]}. We saw {country[3]}, ate too much, and I learned to say \"good "
        f"morning\" in {country[2].split(' and ')[0]}. {reader} would have laughed at me.",
        f"I am writing because of the {thing}. Of the {n + 5} that we ordered, only {n} have arrived, and "
        "three "
        "of these are broken. Could you ask what happened to the rest?",
        f"On Sunday I tried to make {dish[0]}. {dish[2][0]} So far, so good. But then the telephone rang, "
        "and "
        "when I came back, the kitchen was full of smoke.",
        f"Do you remember that you once asked me: {fact[0].lower()} I have read about it since. {fact[1]} "
        "There is more to it, but that is the heart of the matter.",
        f"The meeting at {place} has been moved to the {day}th of {month}. Please bring the plans, and tell "
        f"{r.choice(NAMES)} that the key is with the caretaker.",
        f"The garden behind {place} is finished at last. {n} people came to the opening, and somebody played "
        "the accordion until the neighbours complained."]
    ends = ["Write soon!", "Give my love to everybody at home.", "I look forward to your answer.",
            "Forgive the hurry; the post leaves in ten minutes."]
    chosen = r.sample(middles, r.randrange(1, 4))
    return "\n\n".join([f"{day} {month}", f"Dear {reader},", r.choice(openings), *chosen, r.choice(ends),
                        f"Yours,\n{writer} {surname}"])


def mail(r):
    (a, b), s = r.sample(NAMES, 2), r.choice(SURNAMES)
    number, day, month = r.randrange(1000, 9999), r.randrange(1, 29), r.choice(MONTHS)
    subject, body = r.choice([
        (f"Invoice {number}", f"please find attached invoice {number} of {day} {month}. The amount of "
         f"{r.randrange(20, 900)}.{r.randrange(10, 99)} euros is due within fourteen days."),
        (f"Room {number % 40 + 1} on {day} {month}", f"could we use room {number % 40 + 1} on {day} {month} "
         f"from {r.randrange(8, 12)} to {r.randrange(13, 18)}? We are {r.randrange(4, 20)} people."),
        ("Minutes of yesterday's meeting", "here are the minutes. Decisions:\n\n" + numbered(r.sample([
            "The old printer is given away.", "The library opens on Saturdays.",
            f"{a} looks after the plants in {month}.", "We ask for a second offer before we decide.",
            "The next meeting is in two weeks."], 3))),
        (f"Re: order {number}", f"your order {number} left our house on {day} {month}. It should be with you "
         "within three working days. If something is missing, just answer this message."),
    ])
    return (f"From: {a} {s} <{a.lower()}.{s.lower()}@example.org>\nTo: {b} <{b.lower()}@example.com>\n"
            f"Subject: {subject}\n\nHello {b},\n\n{body}\n\nKind regards\n{a} {s}")


def listing(r):
    dish, country, fact = r.choice(DISHES), r.choice(COUNTRIES), r.choice(SCIENCE)
    name, place, month = r.choice(NAMES), r.choice(PLACES), r.choice(MONTHS)
    tasks = ["water the plants", "call the plumber", f"return the books to {place}",
             "pay the electricity bill",
             f"buy {r.choice(THINGS)}", f"write to {name}", "repair the bicycle lamp",
             "back up the photographs",
             "find the birth certificate", f"book a train for the {r.randrange(1, 29)}th",
             "sharpen the knives"]
    return r.choice([
        f"## To do in {month}\n\n" + "\n".join(f"- [{r.choice(' x')}] {t}" for t in r.sample(tasks, 6)),
        f"# {dish[0].capitalize()}\n\nTime: {dish[3]} minutes\n\n## Ingredients\n\n{bullets(dish[1])}\n\n"
        f"## Steps\n\n{numbered(dish[2])}",
        f"**{country[0]}**\n\n" + bullets([f"Capital: {country[1]}", f"Language: {country[2]}",
                                          f"Known for: {country[4]}"]),
        "\n\n".join(f"Q: {x[0]}\nA: {x[1]}" for x in r.sample(SCIENCE, 3)),
        f"{fact[0]}\n\n{fact[2]}",
        "Shopping list\n\n" + "\n".join(r.sample([i for d in DISHES for i in d[1]], 9)),
        f"Programme of the evening at {place}\n\n" + "\n".join(
            f"{h}:{r.choice(['00', '15', '30', '45'])}  {w}" for h, w in zip(range(17, 22), r.sample([
                f"Welcome by {name} {r.choice(SURNAMES)}", "Music", "A walk through the collection", "Supper",
                f"Talk: {fact[0]}", f"Slides from {country[0]}", "Dancing", "Last bus"], 5))),
        "\n".join(f"{w[0]}: {w[1]}. \"{w[2]}\"" for w in r.sample(WORDS, 4)),
    ])


def writings(r):
    pieces, seen, size = [], set(), 0
    while size < 66000:
        piece = r.choice([letter, letter, mail, listing, listing])(r)
        if piece not in seen:
            pieces.append(piece)
            seen.add(piece)
            size += len(piece)
    return pieces
