"""Story: the agent's JWT-SVIDs and JWT bundles become files and stay fresh, and others are told.

    workload_api      FetchJWTSVID: one question; FetchJWTBundles: a stream
    core.jwt_svid     raw fields -> the JWT-SVID that is ours, or the reason why not
    core.jwt_bundle   raw fields -> JWK Sets, and the files that they go to
    cert_files        replaces a file by a rename, if it is another one
    jwt_keeper        one log line; tells of the publication

    jwt_files         between whom: the agent, and the directory
    svid_file         one `[[jwt_svid]]`: asks at once, and again at half of the token's life
    bundle_files      `jwt_bundle`: follows the stream; what vanished from it is removed
    once              all of it one time, for `fetch`
    trouble           what has failed: told once for each reason, tried again later and later

Beside the rotation and not part of it: serving waits neither for a token nor for a disk. When
something fails the file of before stays. No token is ever logged.
"""

from sidecar.jwt_keeper.bundle_files import keep_jwt_bundles
from sidecar.jwt_keeper.jwt_files import JwtFiles
from sidecar.jwt_keeper.once import fetch_jwt_files
from sidecar.jwt_keeper.svid_file import keep_jwt_svids

__all__ = ["JwtFiles", "fetch_jwt_files", "keep_jwt_bundles", "keep_jwt_svids"]
