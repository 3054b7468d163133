"""Synthetic conversations on which the demonstration model is trained.

Every sentence comes from the tables and templates in this package and from a seeded
pseudo-random generator, so a seed fixes the corpus byte for byte and no outside text,
with its licence and its privacy questions, is involved.

* ``text``        small template language and surface noise for questions
* ``knowledge``   fixed questions and answers about ollmlx
* ``small_talk``  greetings and a little general knowledge
* ``prose``       stories and the long answer
* ``skills``      exchanges that copy: names, JSON, ...; and what to say when nothing fits
* ``tools``       tool definitions, calls and results
* ``rows``        whole conversations rendered to text with a loss mask
* ``evaluation``  the questions on which a trained model is tried
"""

from .rows import Segment, conversation, raw_document, training_row, training_texts

__all__ = ["Segment", "conversation", "raw_document", "training_row", "training_texts"]
