"""Parses a template as strictly as Go's text/template/parse: what Go refuses is an error here, with Go's words."""

from __future__ import annotations

from modelfiles.language.gotemplate.errors import MAX_DEPTH, GoTemplateError
from modelfiles.language.gotemplate.functions import FUNCTIONS
from modelfiles.language.gotemplate.lexer import Token, tokens
from modelfiles.language.gotemplate.literals import character_value, number_value, string_value
from modelfiles.language.gotemplate.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Field,
    Function,
    Jump,
    Literal,
    Node,
    Operand,
    Pipe,
    Template,
    Text,
    Variable,
)  # fmt: skip

# The kinds of token that can begin an operand.
_OPERANDS = (
    "literal", "number", "character", "string", "field", "dot", "variable", "identifier", "left paren",
)  # fmt: skip


def parse_template(source: str) -> Template:
    """The template as a tree. Raises GoTemplateError."""
    return _Parser(list(tokens(source))).parse()


class _Parser:
    """A position in the tokens, the variables in scope and how many ranges are open."""

    def __init__(self, items: list[Token]) -> None:
        self.items, self.position = items, 0
        self.variables = ["$"]
        self.ranges = self.depth = 0
        self.defined: dict[str, list[Node]] = {}

    def parse(self) -> Template:
        nodes: list[Node] = []
        while self.position < len(self.items):
            if self._peek_past_blank().kind == "keyword" and self._peek_past_blank().text == "define":
                self._past_blank()
                self._define()
                continue
            node = self._node()
            if isinstance(node, Token):
                raise GoTemplateError(f"unexpected {{{{{node.text}}}}}")
            nodes.append(node)
        return Template(nodes, self.defined)

    # Tokens -----------------------------------------------------------------------------------------------------------

    def _peek(self) -> Token:
        return self.items[self.position] if self.position < len(self.items) else Token("eof", "end of template", 0)

    def _next(self) -> Token:
        token = self._peek()
        self.position += 1
        return token

    def _peek_past_blank(self) -> Token:
        ahead = self.position
        while ahead < len(self.items) and self.items[ahead].kind == "blank":
            ahead += 1
        return self.items[ahead] if ahead < len(self.items) else Token("eof", "end of template", 0)

    def _past_blank(self) -> Token:
        while self._peek().kind == "blank":
            self.position += 1
        return self._next()

    def _expect_end(self, context: str) -> None:
        token = self._past_blank()
        if token.kind != "end":
            raise _unexpected(token, context)

    # Blocks -----------------------------------------------------------------------------------------------------------

    def _node(self) -> Node | Token:
        """The next node, or the keyword token of {{ end }} or {{ else }}."""
        if self._peek().kind == "text":
            return Text(self._next().text)
        token = self._peek_past_blank()
        if token.kind != "keyword":
            return Action(self._pipe("command", "end"))
        self._past_blank()
        word = token.text
        if word == "end":
            self._expect_end("end")
            return token
        if word == "else":
            if self._peek_past_blank().text not in ("if", "with"):
                self._expect_end("else")
            return token
        if word in ("if", "range", "with"):
            return self._branch(word)
        if word in ("break", "continue"):
            self._expect_end(f"{{{{{word}}}}}")
            if not self.ranges:
                raise GoTemplateError(f"{{{{{word}}}}} outside {{{{range}}}}")
            return Jump(word)
        if word == "template":
            name = self._name("template clause")
            if self._peek_past_blank().kind == "end":
                self._past_blank()
                return Call(name, None)
            return Call(name, self._pipe("template clause", "end"))
        if word == "block":
            name = self._name("block clause")
            pipe = self._pipe("block clause", "end")
            self.defined[name] = self._isolated(f'block "{name}"')
            return Call(name, pipe)
        raise _unexpected(token, "command")  # define, inside something else

    def _list(self, context: str) -> tuple[list[Node], str]:
        """Nodes up to {{ end }} or {{ else }}, and which of the two it was."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GoTemplateError("blocks are nested too deeply")
        nodes: list[Node] = []
        while self.position < len(self.items):
            node = self._node()
            if isinstance(node, Token):
                self.depth -= 1
                return nodes, node.text
            nodes.append(node)
        raise GoTemplateError(f"unexpected EOF: {{{{{context}}}}} has no {{{{end}}}}")

    def _branch(self, kind: str) -> Branch:
        scope = len(self.variables)
        pipe = self._pipe(kind, "end")
        self.ranges += kind == "range"
        body, closer = self._list(kind)
        self.ranges -= kind == "range"
        otherwise: list[Node] = []
        if closer == "else":
            following = self._peek_past_blank()
            if following.kind == "keyword" and following.text in ("if", "with") and self._in_else():
                if following.text != kind:
                    raise _unexpected(following, "input")
                self._past_blank()
                self.depth += 1  # a long chain of `else if` nests as deeply as blocks do
                if self.depth > MAX_DEPTH:
                    raise GoTemplateError("blocks are nested too deeply")
                otherwise = [self._branch(kind)]
                self.depth -= 1
            else:
                otherwise, closer = self._list(kind)
                if closer != "end":
                    raise GoTemplateError("expected end; found {{else}}")
        del self.variables[scope:]
        return Branch(kind, pipe, body, otherwise)

    def _in_else(self) -> bool:
        """Whether the `else` just read has not been closed: its `if` or `with` is still to come."""
        return self.items[self.position - 1].kind != "end"

    def _define(self) -> None:
        name = self._name("define clause")
        self._expect_end("define clause")
        self.defined[name] = self._isolated("define")

    def _isolated(self, context: str) -> list[Node]:
        """The body of a template of its own, which sees no variables of the outside."""
        outside = self.variables, self.ranges
        self.variables, self.ranges = ["$"], 0
        nodes, closer = self._list(context)
        if closer != "end":
            raise GoTemplateError(f"unexpected {{{{else}}}} in {context}")
        self.variables, self.ranges = outside
        return nodes

    def _name(self, context: str) -> str:
        token = self._past_blank()
        if token.kind != "string":
            raise _unexpected(token, context)
        return string_value(token.text)

    # Pipelines --------------------------------------------------------------------------------------------------------

    def _pipe(self, context: str, end: str) -> Pipe:
        """A pipeline up to its `end` token, which is consumed."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GoTemplateError("parentheses are nested too deeply")
        names, declares = self._targets(context)
        commands: list[list[Operand]] = []
        while True:
            token = self._peek_past_blank()
            if token.kind == end:
                self._past_blank()
                break
            if token.kind not in _OPERANDS:
                raise _unexpected(token, context)
            commands.append(self._command())
        if not commands:
            raise GoTemplateError(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command[0], Literal) or command[0] == Field():
                raise GoTemplateError(f"non executable command in pipeline stage {stage}")
        self.depth -= 1
        return Pipe(commands, tuple(names), declares)

    def _targets(self, context: str) -> tuple[list[str], bool]:
        """The variables that a pipeline sets, and whether it declares them."""
        names: list[str] = []
        while self._peek_past_blank().kind == "variable":
            start = self.position
            name = self._past_blank().text
            sign = self._peek_past_blank()
            if sign.kind in ("assign", "declare"):
                self._past_blank()
                self.variables.append(name)
                return [*names, name], sign.kind == "declare"
            if sign.kind != "comma":
                self.position = start
                return names, False
            self._past_blank()
            names.append(name)
            self.variables.append(name)
            if context != "range" or len(names) > 1:
                raise GoTemplateError(f"too many declarations in {context}")
            if self._peek_past_blank().kind != "variable":
                raise GoTemplateError("range can only initialize variables")
        return names, False

    def _command(self) -> list[Operand]:
        """Operands up to a pipe sign, which is consumed, or to what ends the pipeline, which is not."""
        operands: list[Operand] = []
        while True:
            while self._peek().kind == "blank":
                self.position += 1
            if self._peek().kind in _OPERANDS:
                operands.append(self._operand())
            token = self._peek()
            if token.kind in ("end", "right paren"):
                return operands
            self.position += 1
            if token.kind == "pipe":
                return operands
            if token.kind != "blank":
                raise _unexpected(token, "operand")

    def _operand(self) -> Operand:
        operand = self._term()
        names: list[str] = []
        while self._peek().kind == "field":
            names.append(self._next().text[1:])
        if not names:
            return operand
        if isinstance(operand, Field) and operand.names:
            return Field((*operand.names, *names))
        if isinstance(operand, Variable):
            return Variable(operand.name, (*operand.names, *names))
        if isinstance(operand, (Function, Pipe)):
            return Chain(operand, tuple(names))
        raise GoTemplateError(f"unexpected . before {names[0]!r}")

    def _term(self) -> Operand:
        token = self._next()
        text = token.text
        if token.kind == "identifier":
            if text not in FUNCTIONS:
                raise GoTemplateError(f'function "{text}" not defined')
            return Function(text)
        if token.kind == "variable":
            if text not in self.variables:
                raise GoTemplateError(f'undefined variable "{text}"')
            return Variable(text)
        if token.kind == "left paren":
            return self._pipe("parenthesized pipeline", "right paren")
        if token.kind in ("field", "dot"):
            return Field((text[1:],) if text[1:] else ())
        if token.kind == "literal":
            return Literal({"true": True, "false": False, "nil": None}[text])
        value = {"number": number_value, "character": character_value, "string": string_value}[token.kind]
        return Literal(value(text))


def _unexpected(token: Token, context: str) -> GoTemplateError:
    if token.kind == "eof":
        return GoTemplateError(f"unexpected EOF in {context}")
    return GoTemplateError(f"unexpected {token.text!r} in {context}")
