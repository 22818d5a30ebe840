"""A conversation at the terminal."""

from __future__ import annotations

from research.generate.writer import Writer


def converse(writer: Writer) -> None:
  """Reads what a person says and writes answers, until they leave."""
  bank = writer.subject.bank
  print(f"{writer.subject.name}: /reset forgets, /exit leaves, Ctrl-C ends an answer")
  if bank is not None:
    print(f"/adapter NAME changes who answers: {', '.join(bank.names)}; /adapter alone is the base")
  stream = writer.stream()
  messages: list[dict[str, str]] = []
  while True:
    try:
      said = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
      print()
      return
    if said == "/exit":
      return
    if said == "/reset":
      messages = []
      continue
    if bank is not None and said.split(maxsplit=1)[:1] == ["/adapter"]:
      try:
        stream.use(bank.numbers([said.removeprefix("/adapter").strip() or None])[0])
      except ValueError as error:
        print(error)
      continue
    if not said:
      continue
    messages.append({"role": "user", "content": said})
    answer = ""
    try:
      for piece in writer.pieces(stream, messages):
        answer += piece
        print(piece, end="", flush=True)
    except KeyboardInterrupt:
      print(" [stopped]", end="")
    print()
    messages.append({"role": "assistant", "content": answer})
