"""The table of emitters, filled by the decorator `emits`."""

from ..errors import PTXError

_EMITTERS = {}


def emits(*opcodes: str):
    """Makes the function the emitter of instructions whose first part is one of `opcodes`."""

    def register(function):
        for opcode in opcodes:
            _EMITTERS[opcode] = function
        return function

    return register


def emit_instruction(translator, instruction) -> str:
    emitter = _EMITTERS.get(instruction.base)
    if emitter is None:
        raise PTXError("instruction not supported")
    return emitter(translator, instruction)


def supported_opcodes() -> list[str]:
    return sorted(_EMITTERS)
