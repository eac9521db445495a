"""What is kept on disk, and how a run goes on."""

from iadd_lab.store.artefacts import Artefact, load_artefact, read_metadata, save_artefact, save_text
from iadd_lab.store.configs import describe, fingerprint, restore, run_folder
from iadd_lab.store.resumable import Resumable, complete
from iadd_lab.store.runs import Criteria, Stored, prune, stored
