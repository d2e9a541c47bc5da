"""A parsed PTX module -> one C++ file that runs on runtime/kernel.hpp.

Every PTX function becomes a C++ function with the same control flow (goto), PTX registers become
local variables, and every instruction becomes one statement followed by the PTX it came from. The
emitters of the instructions are in the package `instructions`.
"""

import re
from collections import Counter
from dataclasses import dataclass

from .errors import PTXError
from .instructions import emit_instruction
from .names import function_name, mangle, variable_name
from .parser import (
    BranchTargets,
    Function,
    Instruction,
    Label,
    PTXModule,
    RegisterDeclaration,
    ScopeBegin,
    ScopeEnd,
    Variable,
    parse_module,
)
from .ptx_types import CXX_TYPE, HALF_TYPES, REGISTER_TYPE, SIZE, unsigned

SPECIAL_VECTORS = {"%tid": "t.tid", "%ntid": "t.ntid", "%ctaid": "t.ctaid", "%nctaid": "t.nctaid"}

SPECIAL_REGISTERS = {
    "%laneid": "t.lane",
    "%warpid": "t.warp_index",
    "%nwarpid": "u32(t.worker->warps.size())",
    "%smid": "0u",
    "%nsmid": "1u",
    "%gridid": "0ull",
    "%clock": "u32(read_clock(t))",
    "%clock64": "read_clock(t)",
    "%globaltimer": "read_clock(t)",
    "%lanemask_eq": "(1u << t.lane)",
    "%lanemask_lt": "((1u << t.lane) - 1)",
    "%lanemask_le": "((2u << t.lane) - 1)",
    "%lanemask_gt": "(~((2u << t.lane) - 1))",
    "%lanemask_ge": "(~((1u << t.lane) - 1))",
    "%dynamic_smem_size": "t.dynamic_shared_bytes",
    "%total_smem_size": "t.shared_bytes",
    "%warpsize": "32u",
    "WARP_SZ": "32u",
}

DYNAMIC_SHARED = "t.worker->launch->dynamic_offset"
MAX_LOCAL_BYTES = 128 * 1024  # half a fiber's stack
MASK64 = 2**64 - 1


def align_up(offset: int, align: int) -> int:
    return -(-offset // align) * align


@dataclass(frozen=True, order=True)
class Register:
    name: str
    cxx_type: str


@dataclass(frozen=True)
class Address:
    """The operand `[base + offset]`."""

    base: str
    offset: int


class FunctionTranslator:
    def __init__(self, module: "ModuleTranslator", function: Function):
        self.module = module
        self.function = function
        self.parameters = {parameter.name: parameter for parameter in function.parameters}
        self.variables: dict[str, Variable] = {}
        self.scopes: list[dict[str, Register | RegisterDeclaration]] = [{}]
        self.scope_suffix = {0: ""}
        self.scopes_opened = 0
        self.used_registers: set[Register] = set()
        self.local_bytes = 0
        self.shared_bytes = module.shared_bytes_for(function)
        self.branch_targets = {
            s.name: s.labels for s in function.statements if isinstance(s, BranchTargets)
        }
        self.lines: list[str] = []
        for statement in function.statements:
            self._statement(statement)
        if self.local_bytes > MAX_LOCAL_BYTES:
            raise PTXError(f"{function.name}: {self.local_bytes} bytes of local memory per thread")

    # ---- Statements ----

    def _statement(self, statement):
        match statement:
            case ScopeBegin():
                self.scopes_opened += 1
                self.scopes.append({})
                self.scope_suffix[len(self.scopes) - 1] = f"_{self.scopes_opened}"
            case ScopeEnd():
                self.scopes.pop()
            case Label(name):
                self.lines.append(f"{mangle(name)}:;")
            case RegisterDeclaration():
                self._declare_register(statement)
            case Variable():
                self._declare_variable(statement)
            case Instruction():
                self._instruction(statement)

    def _declare_register(self, declaration: RegisterDeclaration):
        scope = self.scopes[-1]
        if declaration.count is not None:
            scope[declaration.name + "<>"] = declaration
            return
        suffix = self.scope_suffix[len(self.scopes) - 1]
        register = Register(mangle(declaration.name) + suffix, REGISTER_TYPE[declaration.type])
        scope[declaration.name] = register
        self.used_registers.add(register)

    def _declare_variable(self, variable: Variable):
        if variable.space == "shared":
            if not self.function.is_kernel:
                raise PTXError(f"{self.function.name}: shared variable in a device function")
            if not variable.is_extern:
                variable.offset = align_up(self.shared_bytes, variable.align)
                self.shared_bytes = variable.offset + variable.size
        elif variable.space in ("local", "param"):
            variable.offset = align_up(self.local_bytes, variable.align)
            self.local_bytes = variable.offset + variable.size
        else:
            raise PTXError(f"{self.function.name}: variable {variable.name} in .{variable.space}")
        self.variables[variable.name] = variable

    def _instruction(self, instruction: Instruction):
        self.module.census[instruction.opcode] += 1
        try:
            code = emit_instruction(self, instruction)
            if instruction.guard:
                negation = "!" if instruction.guard_negated else ""
                guard = self.find_register(instruction.guard).name
                code = f"if ({negation}{guard}) {{ {code} }}"
        except (
            PTXError,
            AssertionError,
            AttributeError,
            KeyError,
            IndexError,
            ValueError,
        ) as error:
            raise PTXError(
                f"{self.function.name}: PTX line {instruction.line}: cannot translate "
                f'"{instruction.text}": {type(error).__name__} {error}'
            ) from error
        count = "++t.worker->instructions; " if self.module.count_instructions else ""
        self.lines.append(f"    {count}{code}  // {instruction.line}: {instruction.text}")

    # ---- Operands ----

    def find_register(self, name: str) -> Register | None:
        for depth in range(len(self.scopes) - 1, -1, -1):
            scope = self.scopes[depth]
            if name in scope:
                return scope[name]
            match = re.match(r"^(.*?)(\d+)$", name)
            if match and match.group(1) + "<>" in scope:
                declaration = scope[match.group(1) + "<>"]
                suffix = self.scope_suffix[depth]
                register = Register(
                    f"{mangle(declaration.name)}{suffix}_{match.group(2)}",
                    REGISTER_TYPE[declaration.type],
                )
                self.used_registers.add(register)
                return register
        return None

    def read(self, operand: str, ptx_type: str) -> str:
        """An expression of type CXX_TYPE[ptx_type]."""
        operand = operand.strip()
        cxx_type = CXX_TYPE[ptx_type]
        if operand.startswith("!"):
            return f"(!{self.read(operand[1:], 'pred')})"
        register = self.find_register(operand)
        if register:
            return self._read_register(register, ptx_type)
        match = re.match(r"^(%\w+)\.([xyz])$", operand)
        if match and match.group(1) in SPECIAL_VECTORS:
            return f"({cxx_type}){SPECIAL_VECTORS[match.group(1)]}[{'xyz'.index(match.group(2))}]"
        if operand in SPECIAL_REGISTERS:
            return f"({cxx_type}){SPECIAL_REGISTERS[operand]}"
        literal = self._read_literal(operand, cxx_type)
        if literal:
            return literal
        address = self.variable_address(operand)
        if address:
            return f"({cxx_type})({address})"
        raise PTXError(f"operand {operand}")

    def _read_register(self, register: Register, ptx_type: str) -> str:
        cxx_type = CXX_TYPE[ptx_type]
        if register.cxx_type == "bool":
            return register.name if cxx_type == "bool" else f"({cxx_type}){register.name}"
        if register.cxx_type == cxx_type:
            return register.name
        is_integer_register = register.cxx_type not in ("float", "double")
        wants_integer = cxx_type[0] in "ui" and ptx_type not in HALF_TYPES
        if is_integer_register and wants_integer:
            return f"({cxx_type}){register.name}"
        return f"bits_as<{cxx_type}>({register.name})"

    @staticmethod
    def _read_literal(operand: str, cxx_type: str) -> str | None:
        if re.match(r"^0[fF][0-9a-fA-F]{8}$", operand):
            bits = f"0x{operand[2:]}u"
            if cxx_type == "double":
                return f"(double)bits_as<float>({bits})"
            return f"bits_as<{cxx_type}>({bits})"
        if re.match(r"^0[dD][0-9a-fA-F]{16}$", operand):
            bits = f"0x{operand[2:]}ull"
            if cxx_type == "float":
                return f"(float)bits_as<double>({bits})"
            return f"bits_as<{cxx_type}>({bits})"
        if not re.match(r"^-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$", operand):
            return None
        value = parse_integer(operand)
        if cxx_type in ("float", "double"):
            raise PTXError(f"integer literal for float: {operand}")
        if cxx_type == "bool":
            return "true" if value else "false"
        if cxx_type == "f16":
            return f"bits_as<f16>((u16){value & 0xFFFF})"
        return f"({cxx_type}){value & MASK64}ull"

    def write(self, operand: str, ptx_type: str, expression: str) -> str:
        """A statement that assigns an expression of type CXX_TYPE[ptx_type]."""
        operand = operand.strip()
        if operand == "_":
            return f"(void)({expression});"
        register = self.find_register(operand)
        if not register:
            raise PTXError(f"destination {operand}")
        cxx_type = CXX_TYPE[ptx_type]
        if register.cxx_type in ("bool", cxx_type):
            return f"{register.name} = {expression};"
        floats = ("float", "double", "f16", "bf16")
        if register.cxx_type in floats or cxx_type in floats:
            return f"{register.name} = bits_as<{register.cxx_type}>(({cxx_type})({expression}));"
        return f"{register.name} = ({register.cxx_type})({cxx_type})({expression});"

    # ---- Addresses ----

    def variable_address(self, name: str) -> str | None:
        """What `mov.u64 %rd, name` yields: an offset in shared memory, else a host address."""
        variable = self.variables.get(name) or self.module.variables.get(name)
        if variable is None:
            return str(self.parameters[name].offset) if name in self.parameters else None
        if variable.space == "shared":
            return DYNAMIC_SHARED if variable.is_extern else f"{variable.offset}u"
        if variable.space in ("local", "param"):
            return f"(u64)(local + {variable.offset})"
        return f"(u64){variable_name(name)}"

    def parse_address(self, operand: str) -> Address:
        operand = operand.strip()
        if not (operand.startswith("[") and operand.endswith("]")):
            raise PTXError(f"address {operand}")
        inner = operand[1:-1].strip()
        match = re.match(r"^(.+?)\s*([+-])\s*(-?\w+)$", inner)
        if match:
            base = match.group(1).strip()
            returned = self.function.return_value
            is_returned = returned is not None and base == returned.name
            if is_returned or self.find_register(base) or self.variable_address(base):
                sign = 1 if match.group(2) == "+" else -1
                return Address(base, sign * parse_integer(match.group(3)))
        return Address(inner, 0)

    def address_value(self, address: Address, bits: int) -> str:
        """The address as a u32 (shared memory) or u64 expression."""
        suffix = "ull" if bits == 64 else "u"
        offset = f"{address.offset & (2**bits - 1)}{suffix}"
        register = self.find_register(address.base)
        base = register.name if register else self.variable_address(address.base)
        if base is None:
            return f"{(int(address.base, 0) + address.offset) & (2**bits - 1)}{suffix}"
        return f"((u{bits}){base} + {offset})"

    def pointer(
        self, space: str, operand: str, size: int, instruction: Instruction, access: str
    ) -> str:
        """A checked `u8*` for an access of `size` bytes; `access` is Read, Write or Atomic."""
        address = self.parse_address(operand)
        where = f'{instruction.line}, "{instruction.opcode}"'
        if space.startswith("param"):
            return self._parameter_pointer(address)
        if space.startswith("shared"):
            offset = self.address_value(address, 32)
            return f"shared_pointer<{size}>(t, {offset}, Access::k{access}, {where})"
        value = self.address_value(address, 64)
        if space == "local":
            return f"((u8*){value})"
        kind = "global" if space in ("global", "const") else "generic"
        site = self.module.new_site()
        return f"{kind}_pointer<{size}>(t, {value}, {site}, Access::k{access}, {where})"

    def _parameter_pointer(self, address: Address) -> str:
        base = address.base
        if base in self.variables:  # of a call being prepared
            return f"((u8*)local + {self.variables[base].offset + address.offset})"
        if base in self.parameters and not self.function.is_kernel:
            return f"((u8*)argument{list(self.parameters).index(base)} + {address.offset})"
        if self.function.return_value and base == self.function.return_value.name:
            return f"(result + {address.offset})"
        if base in self.parameters:
            return f"(t.parameters + {self.parameters[base].offset + address.offset})"
        raise PTXError(f"param {base}")

    # ---- Output ----

    def prototype(self) -> str:
        arguments = ""
        if not self.function.is_kernel:
            arguments = ", u8* result" + "".join(
                f", u8* argument{i}" for i in range(len(self.parameters))
            )
        return f"void {function_name(self.function.name)}(Thread& t{arguments})"

    def definition(self) -> str:
        lines = [self.prototype() + " {"]
        by_type: dict[str, list[str]] = {}
        for register in sorted(self.used_registers):
            by_type.setdefault(register.cxx_type, []).append(register.name)
        for cxx_type, names in by_type.items():
            lines += [f"    {cxx_type} " + ", ".join(f"{name}{{}}" for name in names) + ";"]
        if self.local_bytes:
            lines.append(f"    alignas(16) u8 local[{self.local_bytes}];")
            lines.append("    memset(local, 0xff, sizeof local);")
        lines.append("    u32 carry = 0;")
        lines.append("    (void)carry;")
        return "\n".join(lines + self.lines + ["}"])


class ModuleTranslator:
    def __init__(self, source: PTXModule, count_instructions: bool = False):
        self.count_instructions = count_instructions
        self.variables = source.variables
        self.census: Counter[str] = Counter()
        self.device_functions = {f.name for f in source.functions if not f.is_kernel}
        self.sites = 0
        self.dynamic_alignment = 16
        self.module_shared_bytes = 0
        for variable in self.variables.values():
            self._place_shared(variable)
        self._device_code_uses_shared = any(
            self._uses_module_shared(f) for f in source.functions if not f.is_kernel
        )
        translators = [FunctionTranslator(self, function) for function in source.functions]
        self.functions = [t for t in translators if not t.function.is_kernel]
        self.kernels = [t for t in translators if t.function.is_kernel]

    def new_site(self) -> int:
        self.sites += 1
        return self.sites - 1

    def _place_shared(self, variable: Variable):
        if variable.space != "shared":
            return
        if variable.is_extern:
            self.dynamic_alignment = max(self.dynamic_alignment, variable.align)
            return
        variable.offset = align_up(self.module_shared_bytes, variable.align)
        self.module_shared_bytes = variable.offset + variable.size

    def _uses_module_shared(self, function: Function) -> bool:
        names = [v.name for v in self.variables.values() if v.space == "shared" and not v.is_extern]
        texts = [s.text for s in function.statements if isinstance(s, Instruction)]
        return any(name in text for name in names for text in texts)

    def shared_bytes_for(self, function: Function) -> int:
        """Where a kernel's own shared variables begin: after the module's, if it can reach them."""
        reaches = self._device_code_uses_shared or self._uses_module_shared(function)
        return self.module_shared_bytes if reaches else 0

    def cpp(self, source_name: str) -> str:
        lines = [
            f"// Translated from {source_name} by ptxcpu. Do not edit.",
            '#include "kernel.hpp"',
            "",
            "using namespace ptxcpu;",
            "",
            "namespace {",
            "",
        ]
        variables = [v for v in self.variables.values() if v.space in ("global", "const")]
        lines += [_variable_definition(variable) for variable in variables] + [""]
        lines += [translator.prototype() + ";" for translator in self.functions + self.kernels] + [
            ""
        ]
        for translator in self.functions + self.kernels:
            lines += [translator.definition(), ""]
        lines += self._tables(variables)
        lines += ["", "}  // namespace", ""]
        return "\n".join(lines)

    def _tables(self, variables: list[Variable]) -> list[str]:
        lines = []
        kernel_rows = []
        for translator in self.kernels:
            function = translator.function
            rows = "".join(f"{{{p.offset}, {p.size}}}, " for p in function.parameters)
            table = f"parameters_of_{mangle(function.name)}"
            lines.append(f"const Parameter {table}[] = {{{rows}{{0, 0}}}};")
            fields = [
                f'"{function.name}"',
                function_name(function.name),
                translator.shared_bytes,
                self.dynamic_alignment,
                function.max_threads,
                parameter_bytes(function),
                table,
                len(function.parameters),
            ]
            kernel_rows.append(f"    {{{', '.join(map(str, fields))}}},")
        lines += ["const Kernel kernels[] = {", *kernel_rows, "    {},", "};"]
        variable_rows = [
            f'    {{"{v.name}", (u8*){variable_name(v.name)}, {v.size}}},' for v in variables
        ]
        lines += ["const Variable variables[] = {", *variable_rows, "    {},", "};"]
        counts = f"{len(self.kernels)}, variables, {len(variables)}, {self.sites}"
        lines.append(f"const Module module = {{kernels, {counts}}};")
        lines.append("const Registration registration(module);")
        return lines


def parameter_bytes(function: Function) -> int:
    return max((p.offset + p.size for p in function.parameters), default=0)


def parse_integer(text: str) -> int:
    text = text.rstrip("U")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("-")
    if digits.lower().startswith("0x"):
        return sign * int(digits, 16)
    if digits.lower().startswith("0b"):
        return sign * int(digits[2:], 2)
    if len(digits) > 1 and digits.startswith("0"):
        return sign * int(digits, 8)
    return sign * int(digits)


def _variable_definition(variable: Variable) -> str:
    name = variable_name(variable.name)
    storage = f"alignas({variable.align})"
    if not variable.initialiser:
        return f"{storage} u8 {name}[{max(variable.size, 1)}];"
    element = unsigned(variable.type)
    values = [value.strip() for value in re.sub(r"[{}]", " ", variable.initialiser).split(",")]
    literals = ", ".join(_initial_value(value, element) for value in values if value)
    return f"{storage} {element} {name}[{variable.size // SIZE[variable.type]}] = {{{literals}}};"


def _initial_value(value: str, element: str) -> str:
    if re.match(r"^0[fFdD][0-9a-fA-F]{8,16}$", value):
        return f"0x{value[2:]}ull"
    if re.match(r"^-?(0x)?[0-9a-fA-F]+$", value):
        return f"({element}){int(value, 0) & MASK64}ull"
    raise PTXError(f"initialiser {value}")


def translate(ptx: str, source_name: str = "PTX", count_instructions: bool = False) -> str:
    """C++ source for a PTX module."""
    return ModuleTranslator(parse_module(ptx), count_instructions).cpp(source_name)
