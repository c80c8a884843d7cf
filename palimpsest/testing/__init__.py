"""One battery for every method, of this project and of other packages.

    from palimpsest.testing import check_method
    check_method(my_score)                       # the decorated function, a registered method, or Method(spec,
                                                 function)

runs what every score, analysis, curator, unlearner, attack, recipe, source and task of this project is tested by: that
the declaration is complete and the configuration keeps its ranges, that the output is what was declared, that the same
seed gives the same bits and nothing is drawn from or left in global state, that nothing given is changed, that the
order of the rows does not matter, and that odd and hostile data end in a typed error or a sound output. It raises an
AssertionError that says what was promised and what was found.

The small worlds in which a method is run (``palimpsest.testing.worlds``) are chosen by what its declaration ``wants``:
classes in vectors or images, numbers to predict, items to rank, texts. A task of your own brings its own:
``make_world``. Nothing here knows a method by its name, needs pytest, or is imported before it is asked for.
"""

from palimpsest.testing.battery import CHECKS, EVERYWHERE, check_method, checks_of, run_check
from palimpsest.testing.kinds import kind_of, method_of
from palimpsest.testing.world import World, make_world
from palimpsest.testing.worlds import WORLDS, world_for, worlds_for

__all__ = [
    "CHECKS",
    "EVERYWHERE",
    "WORLDS",
    "World",
    "check_method",
    "checks_of",
    "kind_of",
    "make_world",
    "method_of",
    "run_check",
    "world_for",
    "worlds_for",
]
