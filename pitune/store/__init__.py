"""What a study leaves behind: artifacts, each with a manifest whose presence means *done*.

Made for use: :class:`Store`, the artifacts of one study; :class:`Catalogue`, a snapshot of what is finished;
:class:`Job`, artifacts made together and what they are made from.
"""

from pitune.store.artifacts import Store, table_bytes
from pitune.store.catalogue import Catalogue
from pitune.store.job import Job, fingerprint_of
from pitune.store.manifest import Manifest, manifest_path

__all__ = ["Catalogue", "Job", "Manifest", "Store", "fingerprint_of", "manifest_path", "table_bytes"]
