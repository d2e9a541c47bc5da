"""setp, set, selp, slct, testp."""

from ..errors import PTXError
from ..ptx_types import HALF_TYPES, is_float
from .arithmetic import read_flushed
from .registry import emits

COMPARISON = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_ALIAS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINATION = {"and": "&&", "or": "||", "xor": "!="}

PROPERTY = {
    "finite": "std::isfinite({0})",
    "infinite": "std::isinf({0})",
    "number": "!std::isnan({0})",
    "notanumber": "std::isnan({0})",
    "normal": "std::isnormal({0})",
    "subnormal": "(std::isfinite({0}) && {0} != 0 && !std::isnormal({0}))",
}


def _compare(comparison: str, a: str, b: str, floating: bool) -> str:
    """Float comparisons are false with a NaN operand, those with a final `u` are true."""
    unordered_is_true = floating and comparison.endswith("u")
    name = comparison[:-1] if unordered_is_true else comparison
    name = UNSIGNED_ALIAS.get(name, name)
    if name == "num":
        return f"({a} == {a} && {b} == {b})"
    if name == "nan":
        return f"({a} != {a} || {b} != {b})"
    if name not in COMPARISON:
        raise PTXError(f"comparison {comparison}")
    if floating and name == "ne" and not unordered_is_true:
        return f"({a} < {b} || {a} > {b})"
    result = f"({a} {COMPARISON[name]} {b})"
    return f"({result} || {a} != {a} || {b} != {b})" if unordered_is_true else result


@emits("setp", "set")
def set_predicate(translator, instruction):
    source_type = instruction.type
    modifiers = [m for m in instruction.modifiers if m != "ftz"]
    combine = next((COMBINATION[m] for m in modifiers[1:] if m in COMBINATION), None)
    a, b = (
        read_flushed(translator, instruction, o, source_type) for o in instruction.operands[1:3]
    )
    if source_type in HALF_TYPES:
        a, b = f"(float){a}", f"(float){b}"
    result = _compare(modifiers[0], a, b, is_float(source_type))

    def combined(condition):
        if not combine:
            return condition
        return f"({condition} {combine} {translator.read(instruction.operands[3], 'pred')})"

    if instruction.base == "set":
        destination_type = instruction.parts[-2]
        true_value = "1.0f" if destination_type == "f32" else "0xffffffffu"
        expression = f"({combined(result)} ? {true_value} : 0)"
        return translator.write(instruction.operands[0], destination_type, expression)
    destinations = [name.strip() for name in instruction.operands[0].split("|")]
    code = f"{{ const bool condition = {combined(result)}; "
    if len(destinations) > 1 and destinations[1] != "_":
        code += f"const bool opposite = {combined('(!' + result + ')')}; "
        code += translator.write(destinations[1], "pred", "opposite") + " "
    return code + translator.write(destinations[0], "pred", "condition") + " }"


@emits("selp")
def select(translator, instruction):
    destination, if_true, if_false, condition = instruction.operands
    ptx_type = instruction.type
    values = f"{translator.read(if_true, ptx_type)} : {translator.read(if_false, ptx_type)}"
    return translator.write(
        destination, ptx_type, f"({translator.read(condition, 'pred')} ? {values})"
    )


@emits("slct")
def select_by_sign(translator, instruction):
    destination, if_positive, if_negative, selector = instruction.operands
    ptx_type, selector_type = instruction.parts[-2:]
    values = f"{translator.read(if_positive, ptx_type)} : {translator.read(if_negative, ptx_type)}"
    expression = f"({translator.read(selector, selector_type)} >= 0 ? {values})"
    return translator.write(destination, ptx_type, expression)


@emits("testp")
def test_property(translator, instruction):
    destination, a = instruction.operands
    value = translator.read(a, instruction.type)
    return translator.write(destination, "pred", PROPERTY[instruction.parts[1]].format(value))
