"""Offers ``mmvit/ops`` to Python as ``mmcv._ext``, the compiled module that mmcv-lite lacks.

``mmvit.pth`` imports this module when Python starts, so that mmdet finds the operators without importing mmvit;
importing mmvit does the same where no ``.pth`` file is read. It imports nothing until ``mmcv._ext`` is asked for.
"""

import os
import sys


class Finder:
    """Answers for ``mmcv._ext`` alone. It stands last, so that a compiled module is found before it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'mmcv._ext':
            return None
        from importlib.util import find_spec, spec_from_file_location  # noqa: PLC0415  every Python start would pay

        package = find_spec('mmvit')
        if package is None or not package.submodule_search_locations:
            return None
        folder = os.path.join(package.submodule_search_locations[0], 'ops')
        file = os.path.join(folder, '__init__.py')
        if not os.path.isfile(file):
            return None
        return spec_from_file_location(name, file, submodule_search_locations=[folder])


sys.meta_path.append(Finder)
