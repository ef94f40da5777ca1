"""Write multiple-choice questions about words of Python: python docs/examples/make_questions.py > questions.jsonl

Each question shows the start of a word and asks for its last four letters. The wrong choices have the same letters
in another order, so all choices have the same length. The output is the same every time.
"""

from __future__ import annotations

import json
import random

WORDS = """
append argument assert attribute bytes callable class close continue count default delete encode endswith enumerate
except exception False filename finally float format frozenset functools getattr global import index indent inspect
instance isinstance items iterator keyword lambda length lower method module nonlocal object option package parser
pattern pickle prefix property raise range readline remove repeat replace request result return reversed search
selected sequence setattr socket sorted source split startswith staticmethod string strip subprocess super tempfile
thread timeout token tuple update value version warnings while write yield
"""
BEFORE = ["\n    ", " = ", "(self, ", "if not "]


def wrong_endings(ending, source):
    """Three rearrangements of the letters of an ending, all different from it."""
    endings = set()
    while len(endings) < 3:
        letters = list(ending)
        source.shuffle(letters)
        if (text := "".join(letters)) != ending:
            endings.add(text)
    return sorted(endings)


def main():
    source = random.Random(0)
    for word in sorted(set(WORDS.split())):
        start, ending = word[:-4], word[-4:]
        for before in source.sample(BEFORE, 2):
            answer = source.randrange(4)
            choices = wrong_endings(ending, source)
            choices.insert(answer, ending)
            print(json.dumps({"context": before + start, "choices": choices, "answer": answer}))


if __name__ == "__main__":
    main()
