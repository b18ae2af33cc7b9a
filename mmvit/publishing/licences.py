"""Licences of weights: SPDX's identifiers, and what the Hugging Face hub makes of them."""

from __future__ import annotations

from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

NOT_STATED = 'not stated'
OWN = 'LicenseRef-'
OF_THE_HUB = {  # SPDX's identifiers that are in its list, too
    *('apache-2.0', 'mit', 'isc', 'bsd-2-clause', 'bsd-3-clause', 'mpl-2.0', 'unlicense'),
    *('agpl-3.0', 'gpl-2.0', 'gpl-3.0', 'lgpl-2.1', 'lgpl-3.0'),  # which SPDX replaced by -only and -or-later
    *('cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc-by-nd-4.0', 'cc-by-nc-sa-4.0', 'cc-by-nc-nd-4.0'),
}


def check_licence(licence: str | None) -> str | None:
    """An SPDX expression in its usual spelling. Raises ValueError if SPDX does not know it."""
    if licence is None:
        return None
    try:
        return str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression as error:
        raise ValueError(
            f'--licence {licence}: {error}. Take an SPDX identifier, such as CC-BY-4.0 or Apache-2.0, or write '
            f'{OWN}NAME for terms of your own'
        ) from None


def hub_fields(licence: str | None) -> dict[str, Any]:
    """Entries for the head of a model card. The hub has a list of licences, in small letters; others need a name."""
    if licence is None:
        return {}
    if licence.lower() in OF_THE_HUB:
        return {'license': licence.lower()}
    return {'license': 'other', 'license_name': licence.removeprefix(OWN).lower().replace(' ', '-')}
