"""Methods that read: nothing, everything, the one right document, or what of the corpus fits the budget."""

from cartridges.errors import TooLong
from cartridges.evals.method import Answerer, Workshop


def no_context(workshop: Workshop) -> Answerer:
    """The model alone."""
    return Answerer()


def full_context(workshop: Workshop) -> Answerer:
    """The whole corpus in the context. Raises TooLong where it does not fit the window."""
    text = workshop.corpus.text
    num_tokens = len(workshop.engine.model.ids(text))
    if num_tokens > workshop.room:
        raise TooLong(
            f"given a corpus of {num_tokens} tokens for full_context, expected at most {workshop.room} beside "
            "questions and replies; give a model with a larger window, or take the method truncated"
        )
    return Answerer(lambda item: text)


def right_document(workshop: Workshop) -> Answerer:
    """The document that answers the question, as an oracle would pick it; nothing where no single one does.

    Raises TooLong where one does not fit the window.
    """
    texts = {document.path: document.text for document in workshop.corpus}
    longest = max(len(workshop.engine.model.ids(text)) for text in texts.values())
    if longest > workshop.room:
        raise TooLong(f"given a document of {longest} tokens, expected at most {workshop.room}; cut it into parts")
    return Answerer(lambda item: texts.get(item.document, ""))


def truncated(workshop: Workshop) -> Answerer:
    """The corpus' beginning, as much as the budget or the window holds."""
    num_tokens = min(workshop.text_room(), workshop.room)
    text = workshop.first_tokens(workshop.corpus.text, num_tokens)
    notes = [] if text else [f"{workshop.num_slots} tokens are too few for any text"]
    return Answerer(lambda item: text, notes=notes)
