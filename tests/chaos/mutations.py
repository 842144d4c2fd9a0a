"""Damages files by chance: bytes, lines and values of text, and values of JSON and TOML."""

import copy
import json

PIECES = (
    b'"', b'""', b"\n", b"\r", b"\r\n", b"\0", b"\t", b",", b",,,", b";", b"|", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3",
    b"\\",
    b"'", b"=", b"[", b"]", b"{", b"}", b"[[", b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"-0", b"0x10", b"1_000",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"1" * 400,
    b"null", b"true", b"\x1f", b"\x01", b"\x02", b"\x03", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"2020-01-01",
    b"x" * 70_000,
    b'"' * 101, b"\n" * 300, b"[" * 3000, b'{"a":' * 3000, b"a." * 2000, "٣".encode(), b"PAR1",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31 - 1, 2**31, 2**40, 2**63,
    -(2**63), 2**64, 10**400, "", "x", "\0", "nan", "1", "..", "/", "é", "\ud800", "y" * 5000, [], {}, [[]], [1], ["x"],
    [None], {"x": 1}, {"": {}},
)  # fmt: skip


KINDS = (
    "flip",
    "flip",
    "bit",
    "truncate",
    "insert",
    "insert",
    "replace",
    "remove",
    "repeat",
    "splice",
    "word",
)


def damaged(random, data, others):
    """Returns ``data`` after one to four changes of its bytes, some of which splice in one of
    ``others``.
    """
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = _changed(random, data, random.choice(others))
    return data


def _changed(random, data, other):
    start = random.randrange(len(data) + 1)
    stop = min(len(data), start + random.choice((1, 2, 8, 40, 200)))
    changed = bytearray(data or b"\0")
    piece = random.choice(PIECES)
    match random.choice(KINDS):
        case "flip":
            for _ in range(random.choice((1, 1, 1, 2, 8))):
                changed[random.randrange(len(changed))] = random.choice(
                    (0, 255, 127, 128, random.randrange(256))
                )
        case "bit":
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        case "truncate":
            return data[:start] if random.random() < 0.7 else data[start:]
        case "insert":
            changed[start:start] = piece * random.choice((1, 1, 1, 2, 5))
        case "replace":
            changed[start:stop] = piece
        case "remove":
            del changed[start:stop]
        case "repeat":
            changed[start:stop] = data[start:stop] * random.choice((2, 3, 11))
        case "splice":
            changed[start:] = other[random.randrange(len(other) + 1) :]
        case "word":  # 1, 2, 4 or 8 aligned bytes become a number at the end of a range
            size = random.choice((1, 2, 4, 8))
            place = start // size * size
            number = random.choice(
                (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1)
            )
            changed[place : place + size] = number.to_bytes(size, "little")
    return bytes(changed)


def damaged_table(random, text, others):
    """Returns delimited text after changes of its lines and values, or of its bytes."""
    if random.random() < 0.4:
        return damaged(random, text, others)
    lines = text.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        number = random.randrange(len(lines)) if random.random() < 0.7 else 0
        values = lines[number].split(b",")
        place = random.randrange(len(values))
        match random.randrange(7):
            case 0:
                values[place] = random.choice(PIECES)
            case 1:
                values[place] = b""
            case 2:
                values[place] = (
                    b'"' + values[place] + random.choice((b'"', b"", b'""', b'"x', b'\n"'))
                )
            case 3:
                values.insert(place, values[random.randrange(len(values))])
            case 4:
                del values[place]
            case 5:
                lines.insert(number, random.choice((b"", b"\r", b" ", b",", b'"', lines[number])))
                continue
            case 6:
                values = [random.choice((b"", b"1", b"-1", b'"', b"x")) for _ in values]
        lines[number] = b",".join(values)
    text = random.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)
    return random.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\n")) + text


def damaged_value(random, value):
    """Returns a copy of a tree of dicts and lists after one to three changes of a value."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = [(None, None), *_places(value)]
        holder, key = random.choice(places[1:] or places)
        if holder is None:
            return random.choice(VALUES)
        change = random.randrange(10)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[random.choice(("", "x", *holder))] = holder.pop(key)
        elif change == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(random.choice(holder)))
        elif change == 3:  # another value of the same tree
            other, other_key = random.choice(places[1:])
            holder[key] = copy.deepcopy(other[other_key])
        elif change == 4 and type(holder[key]) in (int, float) and abs(holder[key]) < 2**64:
            holder[key] = random.choice(
                (holder[key] + 1, -holder[key], holder[key] * 1000, float(holder[key]))
            )
        else:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return value


def _places(value):
    """Returns every place in the tree as its holder and key."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place for key, item in items for place in [(value, key), *_places(item)]]


def damaged_json(random, text, others):
    """Returns JSON after changes of its values, or of its bytes. Each line is a value if the whole
    text is not.
    """
    if random.random() < 0.35:
        return damaged(random, text, others)
    try:
        return _json(damaged_value(random, json.loads(text)))
    except ValueError:
        lines = text.splitlines()
        number = random.randrange(len(lines))
        lines[number] = _json(damaged_value(random, json.loads(lines[number])))
        return b"\n".join(lines) + b"\n"


def _json(value):
    return json.dumps(value).encode()


def damaged_toml(random, text, others):
    """Returns TOML after changes of its values, or of its bytes."""
    import tomllib

    if random.random() < 0.35:
        return damaged(random, text, others)
    value = damaged_value(random, tomllib.loads(text.decode()))
    if not isinstance(value, dict):
        return damaged(random, text, others)
    return "".join(f"{json.dumps(key)} = {_toml(item)}\n" for key, item in value.items()).encode(
        "utf-8", "replace"
    )


def _toml(value):
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '"null"' if value is None else json.dumps(value, ensure_ascii=False).replace("\x7f", "")
