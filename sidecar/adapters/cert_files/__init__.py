"""The disk: stage one generation of certificate files, prove it, publish it; and single files.

    directory/
      svid.pem -> current/svid.pem            stable paths for programs that know no generations
      svid_key.pem -> current/svid_key.pem
      svid_bundle.pem -> current/svid_bundle.pem
      current -> generation-<n>               one rename of this link publishes a generation
      generation-<n>/                         written whole, synced, then never changed
      vault.jwt                               a file that belongs to no pair, replaced by a rename

Gets a `FilePlan`, raises `CertFilesError`; whatever fails, the published generation stays. Two
files can never be opened in one step, so a reader that must not see a key of one generation with
a certificate of the next opens `current` once and both files below it. Earlier generations
are kept for such readers. Blocks on the disk: call it in a thread, or in several.
"""

from sidecar.adapters.cert_files.directory import is_volume
from sidecar.adapters.cert_files.file import sync_to_disk
from sidecar.adapters.cert_files.generations import CertFiles

__all__ = ["CertFiles", "is_volume", "sync_to_disk"]
