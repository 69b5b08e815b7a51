"""How much of a conversation is left out: never more than must be, never too little, whatever servers count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aicortex.trimming import Size, Space, count_left_out, letters_of, tokens_of

SIZES = st.lists(
    st.builds(Size, st.integers(0, 9000), st.integers(0, 9000), st.integers(0, 12), st.integers(0, 12)), max_size=12
)
SPACES = st.builds(
    Space, st.integers(1, 20_000), st.none() | st.integers(1, 30_000), st.integers(0, 9000), st.integers(0, 9000)
)
TURN = st.integers(30, 3000)
PER_TOKEN = (3, 4, 5)  # letters


def test_everything_that_has_room_is_sent() -> None:
    """Nothing is left out of a conversation that has room."""
    assert count_left_out([], Space(1)) == 0
    assert count_left_out([Size(300), Size(300)], Space(4096)) == 0


def test_the_oldest_go_first() -> None:
    """Estimated by their letters, so many turns go that a quarter of the room is free."""
    sizes = [Size(300)] * 20  # a hundred tokens each
    assert count_left_out(sizes, Space(2000, limit=400)) == 8  # 12 turns are 1200 tokens of 1600
    assert count_left_out(sizes, Space(2000, limit=400, fixed=300, question=600)) == 11


def test_the_answer_has_room() -> None:
    """A quarter of the length is for the answer, or as much as it may have, but no more than half."""
    rooms = [Space(4000).tokens, Space(4000, 100).tokens, Space(4000, 9999).tokens]
    assert rooms == [3000, 3900, 2000]


def test_what_a_server_counts_is_believed() -> None:
    """A server that packs five letters into a token has more room than an estimate would say."""
    counted = [Size(500, 100 * (number + 1), number) for number in range(20)]
    guessed = [Size(500, 0, number) for number in range(20)]
    assert (count_left_out(counted, Space(4096)), count_left_out(guessed, Space(4096))) == (0, 7)


def test_what_else_the_server_counted_stays() -> None:
    """Tools, the template and the system's words count as long as turns go: they are sent all the same."""
    heavy = [Size(300, 1500 + 100 * (number + 1), number) for number in range(20)]
    assert count_left_out(heavy, Space(4000, limit=1000)) == 13  # 2250 tokens: 1500, and 7 turns


def test_who_counts_only_what_was_not_in_the_cache_is_not_believed() -> None:
    """A conversation that becomes smaller by growing is estimated."""
    cached = [Size(3000, 1000 if number == 0 else 900, number) for number in range(10)]
    estimated = [Size(3000, 1000 if number == 0 else 0, number) for number in range(10)]
    assert count_left_out(cached, Space(4096)) == count_left_out(estimated, Space(4096)) == 8
    shrunk = [Size(300, 3500, 0), Size(300, 3300, 1)]
    assert [count_left_out(sizes, Space(4096)) for sizes in (shrunk[:1], shrunk)] == [1, 0]
    assert count_left_out([*shrunk, Size(300, 3400, 2)], Space(4096)) == 3  # another may have counted this


def test_who_counts_less_than_any_text_has_is_not_believed() -> None:
    """A count that leaves more than six letters to a token is no count of everything."""
    assert count_left_out([Size(30_000, 500)], Space(4096)) == 1


def test_what_was_asked_behind_other_turns_is_not_believed() -> None:
    """Where another process wrote a turn meanwhile, or took some away, the count is of something else."""
    assert count_left_out([Size(300, 90_000, 5)], Space(4096)) == 0
    assert count_left_out([Size(300, 90_000, 0, 3)], Space(4096)) == 0
    assert count_left_out([Size(300, 90_000, 0)], Space(4096)) == 1


def test_the_beginning_stays_the_same_for_a_while() -> None:
    """What was left out stays out, and no more goes, as long as the rest has room: the server has it in its cache."""
    before = [Size(300, left_out=8)] * 20
    assert count_left_out(before, Space(2000, limit=400)) == 8
    assert count_left_out([*before, *before[:3]], Space(2000, limit=400)) == 8
    assert count_left_out([*before, *before[:5]], Space(2000, limit=400)) == 13


def test_a_longer_context_brings_turns_back() -> None:
    """With more room than the last time, as many turns as fit are sent again."""
    before = [Size(300, left_out=18)] * 20
    assert [count_left_out(before, Space(length)) for length in (400, 2000, 4000)] == [18, 9, 0]


def test_an_image_has_a_letters_of_its_own() -> None:
    """What an image takes does not depend on its file; calls and thoughts count by their text."""
    small, large = ({"role": "user", "content": "é", "images": ["x" * size]} for size in (10, 10**6))
    assert letters_of([small]) == letters_of([large]) == 24 + 1 + 3000
    assert letters_of([{"role": "user"}, {"role": "assistant", "content": None}]) == 48
    assert letters_of([{"role": "assistant", "content": "", "thinking": "Hm."}]) == 24 + len('{"thinking":"Hm."}')
    assert [tokens_of(size) for size in (0, 1, 3, 4)] == [0, 1, 1, 2]


@given(SIZES, SPACES)
def test_any_history_has_an_answer(sizes: list[Size], space: Space) -> None:
    """Between none and all turns are left out, whatever the numbers say; a little more room makes none go."""
    found = count_left_out(sizes, space)
    assert 0 <= found <= len(sizes)
    if found == 0:
        assert count_left_out(sizes, Space(space.length + 4, space.limit, space.fixed, space.question)) == 0


def test_letters_of_scripts() -> None:
    """A character is a letter in any alphabet; one that stands for a word, or a part of it, is three or five."""
    texts = {"tea": 3, "чай": 3, "茶": 3, "tea 茶": 7, "🍵": 5, "": 0}
    assert {text: letters_of([{"role": "user", "content": text}]) - 24 for text in texts} == texts


def outgrown(turns: list[tuple[int, int]], length: int, fixed: int, per_token: int, counts: str) -> list[int]:
    """Hold a conversation and return by how many tokens each question had too little room, though turns could go."""
    sizes: list[Size] = []
    found = []
    for asked, answered in turns:
        space = Space(length, answered, fixed, asked)
        left_out = count_left_out(sizes, space)
        whole = (fixed + sum(size.letters for size in sizes[left_out:]) + asked) // per_token
        if whole > space.tokens and left_out < len(sizes):
            found.append(whole - space.tokens)
        context = {"all": whole + answered // per_token, "uncached": (asked + answered) // per_token, "nothing": 0}
        sizes.append(Size(asked + answered, context[counts], len(sizes), left_out))
    return found


@given(
    st.lists(st.tuples(TURN, TURN), min_size=1, max_size=60),
    st.integers(2048, 8192),
    st.integers(0, 500),
    st.sampled_from(PER_TOKEN),
    st.sampled_from(["all", "nothing"]),
)
def test_no_conversation_outgrows_its_context(
    turns: list[tuple[int, int]], length: int, fixed: int, per_token: int, counts: str
) -> None:
    """A conversation that goes on and on always has room, with servers that count everything or nothing."""
    assert outgrown(turns, length, fixed, per_token, counts) == []


@given(st.lists(st.tuples(st.integers(100, 150), st.integers(900, 1400)), max_size=60), st.sampled_from(PER_TOKEN))
def test_nor_where_a_server_counts_what_was_not_in_its_cache(turns: list[tuple[int, int]], per_token: int) -> None:
    """Such counts are found out before they do harm."""
    assert outgrown(turns, 4096, 300, per_token, "uncached") == []
