"""PTX text -> functions with their statements, and module variables.

No meaning is given to instructions here.
"""

import re
from dataclasses import dataclass, field

from .errors import PTXError
from .ptx_types import SIZE


@dataclass
class Variable:
    name: str
    space: str  # global, const, shared, local or param
    type: str
    align: int
    size: int  # bytes; 0 for `extern .shared x[]`
    initialiser: str | None = None
    is_extern: bool = False
    offset: int = 0  # in its space; assigned by the translator


@dataclass
class Label:
    name: str


@dataclass
class BranchTargets:
    """The table of a brx.idx."""

    name: str
    labels: list[str]


@dataclass
class ScopeBegin:
    pass


@dataclass
class ScopeEnd:
    pass


@dataclass
class RegisterDeclaration:
    type: str
    name: str
    count: int | None  # `%r<10>` declares ten registers, %r0 to %r9


@dataclass
class Instruction:
    line: int
    text: str
    opcode: str
    operands: list[str]
    guard: str | None = None
    guard_negated: bool = False
    parts: list[str] = field(init=False)

    def __post_init__(self):
        self.parts = self.opcode.split(".")

    @property
    def base(self) -> str:
        return self.parts[0]

    @property
    def modifiers(self) -> list[str]:
        return self.parts[1:]

    @property
    def type(self) -> str:
        return self.parts[-1]

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers


Statement = (
    Label | BranchTargets | ScopeBegin | ScopeEnd | RegisterDeclaration | Variable | Instruction
)


@dataclass
class Function:
    name: str
    is_kernel: bool
    parameters: list[Variable]
    return_value: Variable | None
    max_threads: int
    statements: list[Statement]


@dataclass
class PTXModule:
    functions: list[Function]
    variables: dict[str, Variable]


def parse_module(ptx: str) -> PTXModule:
    text = _without_comments_and_directives(ptx)
    module = PTXModule([], {})
    header = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == "{" and re.search(r"\.(entry|func)\b", header):
            end = _matching_brace(text, position)
            first_line = text.count("\n", 0, position) + 1
            module.functions.append(_parse_function(header, text[position + 1 : end], first_line))
            header = ""
            position = end + 1
            continue
        if char == ";":
            declaration = header.strip()
            is_prototype = re.search(r"\.(entry|func)\b", declaration)
            if declaration and not is_prototype and not declaration.startswith(".section"):
                variable = parse_variable(declaration)
                module.variables[variable.name] = variable
            header = ""
        else:
            header += char
        position += 1
    return module


def parse_variable(declaration: str) -> Variable:
    match = re.match(
        r"^((?:\.\w+\s+(?:\d+\s+)?)*?)\.(global|const|shared|local|param)\s+(.*)$",
        declaration,
        re.S,
    )
    if not match:
        raise PTXError(f"bad variable: {declaration}")
    linkage, space, rest = match.groups()
    align = re.search(r"\.align\s+(\d+)", rest)
    rest = re.sub(r"\.align\s+\d+", "", rest).strip()
    pattern = (
        r"(?:\.v([248])\s+)?\.(\w+)\s+"  # vector width, type
        r"(?:\.ptr\s*(?:\.\w+\s*)*(?:\d+\s*)?)?"  # pointer attributes of a parameter
        r"([%$\w.]+)\s*((?:\[\s*\d*\s*\])*)\s*"  # name, dimensions
        r"(?:=\s*(.*))?$"  # initialiser
    )
    match = re.match(pattern, rest, re.S)
    if not match:
        raise PTXError(f"bad variable: {declaration}")
    vector, ptx_type, name, dimensions, initialiser = match.groups()
    element_size = SIZE[ptx_type] * int(vector or 1)
    size = element_size
    for dimension in re.findall(r"\[\s*(\d*)\s*\]", dimensions):
        size *= int(dimension or 0)
    return Variable(
        name=name,
        space=space,
        type=ptx_type,
        align=int(align.group(1)) if align else element_size,
        size=size,
        initialiser=initialiser,
        is_extern=".extern" in linkage,
    )


def split_operands(text: str) -> list[str]:
    """Splits at the commas outside brackets: `{%f1,%f2}, [%rd1+4]` has two operands."""
    operands = []
    depth = 0
    current = ""
    for char in text:
        if char in "{[(":
            depth += 1
        if char in "}])":
            depth -= 1
        if char == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += char
    if current.strip():
        operands.append(current.strip())
    return operands


def vector_elements(operand: str) -> list[str]:
    """`{%f1, %f2}` -> its elements; a plain operand is a vector of one."""
    operand = operand.strip()
    if not operand.startswith("{"):
        return [operand]
    return [element.strip() for element in operand[1:-1].split(",")]


def _without_comments_and_directives(ptx: str) -> str:
    """Line numbers stay those of the file, since error messages name them."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), ptx, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r"(?m)^[ \t]*\.(loc|file|version|target|address_size)\b[^\n]*", "", text)


def _matching_brace(text: str, start: int) -> int:
    depth = 0
    for position in range(start, len(text)):
        if text[position] == "{":
            depth += 1
        if text[position] == "}":
            depth -= 1
        if depth == 0:
            return position
    raise PTXError("unbalanced braces")


def _parse_function(header: str, body: str, first_line: int) -> Function:
    statements = _BodyParser(body, first_line).parse()
    match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?", header, re.S)
    if match:
        name, parameters = match.group(1), match.group(2) or ""
        limit = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", header)
        max_threads = 1024
        if limit:
            max_threads = 1
            for dimension in limit.groups():
                max_threads *= int(dimension or 1)
        return Function(name, True, _parse_parameters(parameters), None, max_threads, statements)
    match = re.search(r"\.func\s*(?:\((.*?)\))?\s*([\w$]+)\s*\((.*?)\)", header, re.S)
    if not match:
        raise PTXError(f"bad function header: {header.strip()}")
    return_text, name, parameters = match.groups()
    return_value = (
        parse_variable(return_text.strip()) if return_text and return_text.strip() else None
    )
    return Function(name, False, _parse_parameters(parameters), return_value, 1024, statements)


def _parse_parameters(text: str) -> list[Variable]:
    """Parameters with their offsets, aligned as in a C struct."""
    parameters = [parse_variable(part.strip()) for part in text.split(",") if part.strip()]
    offset = 0
    for parameter in parameters:
        offset = -(-offset // parameter.align) * parameter.align
        parameter.offset = offset
        offset += parameter.size
    return parameters


class _BodyParser:
    LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")

    def __init__(self, body: str, first_line: int):
        self.body = body
        self.line = first_line
        self.statements: list[Statement] = []
        self.last_label = ""

    def parse(self) -> list[Statement]:
        position = 0
        text = ""  # of the statement being collected
        start_line = self.line
        while position < len(self.body):
            char = self.body[position]
            if char == "\n":
                self.line += 1
            if not text.strip():
                text = ""
                start_line = self.line
                consumed = self._between_statements(position)
                if consumed:
                    position += consumed
                    continue
            if char == ";":
                self._statement(re.sub(r"\s+", " ", text.strip()), start_line)
                text = ""
            else:
                text += char
            position += 1
        return self.statements

    def _between_statements(self, position: int) -> int:
        """Handles what needs no semicolon; returns the number of characters used."""
        char = self.body[position]
        if char.isspace():
            return 1
        if char == "{":
            self.statements.append(ScopeBegin())
            return 1
        if char == "}":
            self.statements.append(ScopeEnd())
            return 1
        match = self.LABEL.match(self.body, position)
        if match:
            self.last_label = match.group(1)
            self.statements.append(Label(self.last_label))
            return match.end() - position
        return 0

    def _statement(self, text: str, line: int):
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith((".pragma", ".loc ")):
            pass
        elif text.startswith(".branchtargets"):
            labels = [label.strip() for label in text[len(".branchtargets") :].split(",")]
            self.statements.append(BranchTargets(self.last_label, labels))
        elif text.startswith("."):
            self.statements.append(parse_variable(text))
        else:
            self._instruction(text, line)

    def _registers(self, text: str):
        match = re.match(r"^\.reg \.(\w+) (.*)$", text)
        if not match:
            raise PTXError(f"bad register declaration: {text}")
        ptx_type, names = match.groups()
        for name in names.split(","):
            many = re.match(r"^(.*?)<\s*(\d+)\s*>$", name.strip())
            if many:
                declaration = RegisterDeclaration(ptx_type, many.group(1), int(many.group(2)))
            else:
                declaration = RegisterDeclaration(ptx_type, name.strip(), None)
            self.statements.append(declaration)

    def _instruction(self, text: str, line: int):
        match = re.match(r"^(?:@(!?)([%\w]+) )?(\S+)\s*(.*)$", text)
        if not match:
            raise PTXError(f"PTX line {line}: bad instruction: {text}")
        negated, guard, opcode, operands = match.groups()
        self.statements.append(
            Instruction(line, text, opcode, split_operands(operands), guard, negated == "!")
        )
