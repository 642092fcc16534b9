"""Assertions of the public suite explain themselves as those of tests do."""

import pytest

pytest.register_assert_rewrite("expunge.conformance")
