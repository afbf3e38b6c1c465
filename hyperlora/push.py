"""A folder, such as an exported adapter's, as a repository on the Hugging Face Hub, with the token of whoever pushes.

Neither the machine's own token is sent (HF_TOKEN, a login) nor is one that is given kept, or named in an error.
"""

import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlora import __version__
from hyperlora.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN = re.compile(r"[!-~]{1,8192}")  # what a header can hold
TIMEOUT = 30.0  # seconds without a byte: the library would wait for ever
NAMES = "letters, digits, “-”, “_” and “.”, at most 96 in all"
_here = threading.local()
# Of a retry the library logs the address, in which is the repository's name, and in that the description.
logging.getLogger("huggingface_hub.utils._http").addFilter(lambda record: not getattr(_here, "pushes", False))


def push(folder: Path, name: str, token: str, private: bool = True, endpoint: str | None = None) -> str:
    """Make the model repository `name`, NAME or OWNER/NAME, of the folder's files; returns its address.

    One that is there is not overwritten, unless it is empty and as private as is asked: a push that broke off can be
    repeated. `endpoint`: another Hub than HF_ENDPOINT says. Raises `UserError` in one sentence, before anything is sent
    where token or name are none.
    """
    from huggingface_hub import HfApi, get_session

    token = check_token(token)
    check_name(name)
    api = HfApi(endpoint=endpoint, token=token, library_name="hyperlora", library_version=__version__)
    get_session().timeout = TIMEOUT
    _here.pushes = True
    try:
        return _send(api, folder, name, private)
    except UserError:
        raise
    except Exception as error:  # whatever a network can do
        said = why_not_pushed(error, name, api.endpoint)
    finally:
        _here.pushes = False
    raise UserError(said)  # not from what the library raised, which holds the request


def _send(api: "HfApi", folder: Path, name: str, private: bool) -> str:
    repo = api.create_repo(name, private=private, exist_ok=True).repo_id
    found = api.model_info(repo)
    if found.private is not private or {file.rfilename for file in found.siblings or ()} - {".gitattributes"}:
        raise UserError(f"{repo} is on the Hub already: give another name, or delete that one there.")
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with HyperLoRA")
    return f"{api.endpoint}/{repo}"


def check_token(token: str) -> str:
    """The token without space around it; `UserError` where there is none, or where it cannot be one."""
    token = token.strip()
    if not token:
        raise UserError("A token of the Hugging Face Hub is needed, with the right to write: none was given.")
    if not TOKEN.fullmatch(token):
        raise UserError("The token is none of the Hugging Face Hub's: copy it again, as a whole.")
    return token


def check_name(name: str) -> None:
    """`UserError` for what the Hub would not take as a repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"The repository's name must be NAME or OWNER/NAME, of {NAMES}.") from None


def why_not_pushed(error: BaseException, name: str, endpoint: str) -> str:
    """Why a repository could not be made or filled, and what to do, in a sentence that holds nothing of the request."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps this machine from the Hub: export the adapter, and push it from another one."
    while error.__cause__ is not None and not isinstance(error, errors.HfHubHTTPError):
        error = error.__cause__
    if not isinstance(error, errors.HfHubHTTPError):
        return "The Hub could not be reached, or the upload broke off: check the network, and try again."
    status, words = error.response.status_code, (error.server_message or "").lower()
    tokens = f"{endpoint}/settings/tokens"
    if status == 402 or "storage" in words or "quota" in words:
        return "The Hub has no more room for this account: delete something there, or push it as public."
    if status == 401:
        return f"The Hub does not know the token, or no longer: sign in again, or make a new one on {tokens}."
    if status == 403:
        return f"The Hub does not let this token write {name}: give a name of your own, or a token that may ({tokens})."
    if status in (400, 404, 409, 412):
        return f"The Hub does not take {name} (error {status}): give another name."
    if status == 429:
        return "The Hub takes no more from this account for now: try again in an hour."
    return f"The Hub cannot take it now (error {status}): try again in a while."
