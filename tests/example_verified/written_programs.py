"""A right program for each task of examples/verified_code, by the function's name."""

from __future__ import annotations

SOLUTIONS = {
    "larger": """
def larger(a, b):
    if a > b:
        return a
    return b
""",
    "smallest": """
def smallest(a, b, c):
    least = a
    if b < least:
        least = b
    if c < least:
        least = c
    return least
""",
    "middle": """
def middle(a, b, c):
    return a + b + c - min(a, min(b, c)) - max(a, max(b, c))
""",
    "clamp": """
def clamp(x, low, high):
    if x < low:
        return low
    elif x > high:
        return high
    return x
""",
    "sign": """
def sign(x):
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0
""",
    "distance": """
def distance(a, b):
    if a > b:
        return a - b
    return b - a
""",
    "left_over": """
def left_over(stock, sold):
    if sold > stock:
        return 0
    return stock - sold
""",
    "inside": """
def inside(x, low, high):
    if low <= x and x <= high:
        return 1
    return 0
""",
    "round_up_3": """
def round_up_3(n):
    up = 0
    while up < n:
        invariant(up % 3 == 0)
        invariant(0 <= up < n + 3)
        decreases(n - up)
        up = up + 3
    return up
""",
    "round_up_7": """
def round_up_7(n):
    up = 0
    while up < n:
        invariant(up % 7 == 0)
        invariant(0 <= up < n + 7)
        decreases(n - up)
        up = up + 7
    return up
""",
    "round_up_12": """
def round_up_12(n):
    up = 0
    while up < n:
        invariant(up % 12 == 0)
        invariant(0 <= up < n + 12)
        decreases(n - up)
        up = up + 12
    return up
""",
    "round_down_4": """
def round_down_4(n):
    down = 0
    while down + 4 <= n:
        invariant(down % 4 == 0)
        invariant(0 <= down <= n)
        decreases(n - down)
        down = down + 4
    return down
""",
    "round_down_5": """
def round_down_5(n):
    down = 0
    while down + 5 <= n:
        invariant(down % 5 == 0)
        invariant(0 <= down <= n)
        decreases(n - down)
        down = down + 5
    return down
""",
    "round_down_9": """
def round_down_9(n):
    down = 0
    while down + 9 <= n:
        invariant(down % 9 == 0)
        invariant(0 <= down <= n)
        decreases(n - down)
        down = down + 9
    return down
""",
    "half": """
def half(n):
    part = 0
    while 2 * part + 2 <= n:
        invariant(part >= 0)
        invariant(2 * part <= n)
        decreases(n - 2 * part)
        part += 1
    return part
""",
    "third": """
def third(n):
    part = 0
    while 3 * part + 3 <= n:
        invariant(part >= 0)
        invariant(3 * part <= n)
        decreases(n - 3 * part)
        part += 1
    return part
""",
    "fifth": """
def fifth(n):
    part = 0
    while 5 * part + 5 <= n:
        invariant(part >= 0)
        invariant(5 * part <= n)
        decreases(n - 5 * part)
        part += 1
    return part
""",
    "tenth": """
def tenth(n):
    part = 0
    while 10 * part + 10 <= n:
        invariant(part >= 0)
        invariant(10 * part <= n)
        decreases(n - 10 * part)
        part += 1
    return part
""",
    "parity": """
def parity(n):
    left = n
    while left >= 2:
        invariant(left >= 0)
        invariant((n - left) % 2 == 0)
        decreases(left)
        left -= 2
    return left
""",
    "rest_6": """
def rest_6(n):
    left = n
    while left >= 6:
        invariant(left >= 0)
        invariant((n - left) % 6 == 0)
        decreases(left)
        left -= 6
    return left
""",
    "weekday": """
def weekday(n):
    left = n
    while left >= 7:
        invariant(left >= 0)
        invariant((n - left) % 7 == 0)
        decreases(left)
        left -= 7
    return left
""",
    "hour": """
def hour(n):
    left = n
    while left >= 24:
        invariant(left >= 0)
        invariant((n - left) % 24 == 0)
        decreases(left)
        left -= 24
    return left
""",
    "boxes": """
def boxes(n):
    many = 0
    while 6 * many < n:
        invariant(many >= 0)
        invariant(6 * many < n + 6)
        decreases(n - 6 * many)
        many += 1
    return many
""",
    "tables": """
def tables(n):
    many = 0
    while 4 * many < n:
        invariant(many >= 0)
        invariant(4 * many < n + 4)
        decreases(n - 4 * many)
        many += 1
    return many
""",
    "buses": """
def buses(n):
    many = 0
    while 50 * many < n:
        invariant(many >= 0)
        invariant(50 * many < n + 50)
        decreases(n - 50 * many)
        many += 1
    return many
""",
    "triangle": """
def triangle(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(2 * total == i * (i + 1))
        decreases(n - i)
        i += 1
        total += i
    return total
""",
    "square": """
def square(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(total == i * i)
        decreases(n - i)
        i += 1
        total += 2 * i - 1
    return total
""",
    "evens": """
def evens(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(total == i * (i + 1))
        decreases(n - i)
        i += 1
        total += 2 * i
    return total
""",
    "fives": """
def fives(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(2 * total == 5 * i * (i + 1))
        decreases(n - i)
        i += 1
        total += 5 * i
    return total
""",
    "squares": """
def squares(n):
    total = 0
    square = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(square == i * i)
        invariant(6 * total == i * (i + 1) * (2 * i + 1))
        decreases(n - i)
        square += 2 * i + 1
        i += 1
        total += square
    return total
""",
    "product": """
def product(a, b):
    total = 0
    i = 0
    while i < b:
        invariant(0 <= i <= b)
        invariant(total == a * i)
        decreases(b - i)
        i += 1
        total += a
    return total
""",
    "root": """
def root(n):
    r = 0
    next = 1
    while next <= n:
        invariant(r >= 0)
        invariant(next == (r + 1) * (r + 1))
        invariant(r * r <= n)
        decreases(n - next + 1)
        r += 1
        next += 2 * r + 1
    return r
""",
    "rows": """
def rows(n):
    r = 0
    left = n
    while left > r:
        invariant(r >= 0)
        invariant(left >= 0)
        invariant(r * (r + 1) == 2 * n - 2 * left)
        decreases(left)
        r += 1
        left -= r
    return r
""",
    "quotient": """
def quotient(a, b):
    q = 0
    left = a
    while left >= b:
        invariant(q >= 0)
        invariant(left >= 0)
        invariant(q * b + left == a)
        decreases(left)
        left -= b
        q += 1
    return q
""",
    "stairs": """
def stairs(n, step):
    big = 0
    left = n
    while left >= 3:
        invariant(left >= 0)
        invariant(3 * big + left == n)
        decreases(left)
        left -= 3
        big += 1
    return big + left
""",
    "ladder": """
def ladder(n):
    at = 0
    highest = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(at == i)
        invariant(highest == (i + 1 if i > 0 else 0))
        decreases(n - i)
        at += 2
        highest = max(highest, at)
        at -= 1
        i += 1
    return highest
""",
    "change": """
def change(paid, price):
    return paid - price
""",
    "gap": """
def gap(a, b, c):
    return max(a, max(b, c)) - min(a, min(b, c))
""",
    "threes": """
def threes(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(2 * total == 3 * i * (i + 1))
        decreases(n - i)
        i += 1
        total += 3 * i
    return total
""",
    "odds": """
def odds(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(total == i * i)
        decreases(n - i)
        i += 1
        total += 2 * i - 1
    return total
""",
    "half_up": """
def half_up(n):
    part = 0
    while 2 * part < n:
        invariant(part >= 0)
        invariant(2 * part <= n + 1)
        decreases(n - 2 * part)
        part += 1
    return part
""",
    "frame": """
def frame(width, height):
    return 2 * width + 2 * height - 4
""",
    "rest_5": """
def rest_5(n):
    left = n
    while left >= 5:
        invariant(left >= 0)
        invariant((n - left) % 5 == 0)
        decreases(left)
        left -= 5
    return left
""",
}
