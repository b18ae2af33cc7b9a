"""Licences of weights: SPDX's identifiers, and what the Hugging Face hub makes of them."""

from __future__ import annotations

from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

NOT_STATED = 'not stated'
OWN = 'LicenseRef-'


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
    """Entries for the head of a model card. The hub knows single licences, in small letters."""
    if licence is None:
        return {}
    if licence.startswith(OWN) or ' ' in licence:
        return {'license': 'other', 'license_name': licence.removeprefix(OWN).lower().replace(' ', '-')}
    return {'license': licence.lower()}
