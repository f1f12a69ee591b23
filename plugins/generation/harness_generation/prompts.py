"""Forty prompts for the evaluator, written for this purpose. Scores depend on their text and order."""

import hashlib

PROMPTS = (
    # stories
    "The lighthouse keeper had not spoken to anyone for eleven days when the small boat appeared, and",
    "Marta put the letter back into the drawer, locked it, and walked down to the river because",
    "Once there was a fox who wanted to learn how to read. Every morning he",
    "The train stopped between two stations. At first nobody looked up, but then",
    "When my grandfather opened the old workshop for the last time, the first thing he did was",
    "It was the coldest night of the year, and the baker still had forty loaves to deliver.",
    "Nobody in the village believed the girl who said that the mountain was humming, until",
    "The captain read the message twice, folded it, and told the crew that",
    # facts and explanations
    "Water boils at a lower temperature on a mountain than at the sea because",
    "The heart of a mammal has four chambers. The right side",
    "Bees find their way back to the hive by",
    "The printing press changed Europe in several ways. First,",
    "A glacier is a body of ice that",
    "In economics, inflation means that",
    "The Moon always shows the same face to the Earth. The reason is",
    "The Roman Empire built roads in order to",
    "Plants turn sunlight into sugar. This process,",
    "An electric motor works by",
    # instructions
    "How to change a flat bicycle tyre:\n1.",
    "To make a simple vegetable soup, begin by",
    "Before you paint a wooden door, you should",
    "If you get lost in a forest, the most important thing is to",
    "Three ways to remember a new word in a foreign language:\n-",
    # dialogue
    '"Have you seen my keys?" asked Tom.\n"They are on the table," said Anna, "next to',
    "Customer: The lamp I bought last week does not work any more.\nShop assistant:",
    "Teacher: Why do we see lightning before we hear thunder?\nStudent:",
    "Interviewer: What made you become a nurse?\nNurse: I think it began when",
    # questions
    "Question: What is the difference between a lake and a pond?\nAnswer:",
    "Question: A shop sells pens for 2 coins each. How much do 7 pens cost?\nAnswer:",
    "Question: Which planet is the largest in the solar system?\nAnswer:",
    # code and comments
    "# Return the largest number in a list, or None if the list is empty.\ndef largest(numbers):\n",
    "/* This function checks whether a year is a leap year. A year is a leap year if",
    "A stack and a queue both hold items in order. The difference is that",
    # lists
    "Shopping list for a picnic with six people:\n- bread\n- cheese\n-",
    "The days of the week are Monday, Tuesday,",
    "Advantages of travelling by train: it is comfortable,",
    # letters, news, opinion
    "Dear neighbours,\n\nnext Saturday we are going to celebrate",
    "The city council decided on Tuesday to close the old bridge, after engineers",
    "I used to think that long meetings were useful, but now",
    "Tomorrow will be mostly cloudy in the north, while the south",
)
IDENTITY = hashlib.sha256("\0".join(PROMPTS).encode()).hexdigest()
