import pytest

from tests.stores import emulators


@pytest.fixture(scope="session")
def gs():
    with emulators.here("gs") as bucket:
        yield bucket


@pytest.fixture(scope="session")
def s3():
    with emulators.here("s3") as bucket:
        yield bucket


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    """A bucket, as GCS and as S3 have it: gs://bucket, s3://bucket."""
    return request.getfixturevalue(request.param)
