"""`lensmith chat`: the loop of questions and answers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from gateway.chat.answering import answering
from gateway.chat.conversation import ChatError, Conversation
from modelfiles import counted

HELP = """/image PATH   a picture for the next question; several may be given one after the other
/clear        begin again
/help         this
Ctrl-C ends an answer, Ctrl-D the chat."""


@click.command()
@click.argument("what", metavar="MODEL|ADAPTER|URL")
@click.option("--model", help="Which of the models of a server at a URL.  [default: its first]")
@click.option("--image", "images", type=click.Path(path_type=Path), multiple=True, help="A picture to begin with.")
def chat(what: str, model: str | None, images: tuple[Path, ...]) -> None:
    """Talk to a model in the terminal: a model folder, an adapter's folder (beside its base), or a server's URL.

    /image PATH adds a picture to the next question. A server's key is taken from LENSMITH_API_KEY.
    """
    if not what.startswith(("http://", "https://")):
        click.echo("Loading the model…", err=True)
    try:
        with answering(what, model) as engine:
            conversation = Conversation(engine)
            for path in images:
                conversation.add_picture(path)
            click.echo(f"{engine.model} answers. /image PATH adds a picture, /help says more, Ctrl-D ends.", err=True)
            _talk(conversation)
    except ChatError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _talk(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):  # the arrow keys, and earlier questions
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:  # the line is thrown away
            click.echo()
            continue
        if line.startswith("/"):
            _obey(conversation, line)
        elif line:
            _answer(conversation, line)


def _obey(conversation: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/image" and rest.strip():
        try:
            count = conversation.add_picture(Path(rest.strip().strip("'\"")))
        except ChatError as error:
            click.echo(str(error), err=True)
            return
        click.echo(f"{counted(count, 'picture')} with the next question.", err=True)
    elif command == "/clear":
        conversation.clear()
        click.echo("A new conversation.", err=True)
    else:
        click.echo(HELP, err=True)


def _answer(conversation: Conversation, line: str) -> None:
    pieces = conversation.ask(line)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
    except KeyboardInterrupt:
        pieces.close()
        click.echo(" …")
    except ChatError as error:
        click.echo(str(error), err=True)
