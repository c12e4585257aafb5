"""The endpoints of vector stores, of their files and of file batches."""

import msgspec
from msgspec import UNSET

from mini_assistant.assistants.schema import Deleted
from mini_assistant.http.routing import Request, Route
from mini_assistant.pagination import EMPTY_LIST, Page, list_schema
from mini_assistant.vector_stores import batches, commands, store
from mini_assistant.vector_stores.filters import check_filter
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import (
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    FileBatch,
    FileContent,
    FileStatus,
    FileText,
    FoundPassage,
    ModifyVectorStore,
    ModifyVectorStoreFile,
    SearchRankingOptions,
    SearchResultsPage,
    SearchVectorStore,
    VectorStore,
    VectorStoreFile,
)
from mini_assistant.vector_stores.search import SearchOptions, SearchResult, rewritten_queries, search_stores


class FilePage(Page, frozen=True):
    """Query of a list of files. filter: only files of this status."""

    filter: FileStatus | None = None


def _scope(request: Request[object, object]) -> StoreScope:
    return StoreScope(request.project_id, request.path["vector_store_id"])


async def create_vector_store(request: Request[CreateVectorStore, None]) -> str:
    return await commands.create_store(request.services, request.project_id, request.body, request.remember)


async def list_vector_stores(request: Request[None, Page]) -> str:
    services, now = request.services, request.services.now()
    scope = {"project_id": request.project_id}
    return await store.store_listing.page(services.db, request.query, scope, render=lambda row: store.store_json(row, now))


async def get_vector_store(request: Request[None, None]) -> str:
    return await store.get_store_json(request.services, *_scope(request))


async def modify_vector_store(request: Request[ModifyVectorStore, None]) -> str:
    return await commands.modify_store(request.services, _scope(request), request.body)


async def delete_vector_store(request: Request[None, None]) -> str:
    scope = _scope(request)
    await commands.delete_store(request.services, scope, request.audit("vector_store.deleted", scope.vector_store_id))
    return msgspec.json.encode(Deleted(scope.vector_store_id, "vector_store.deleted")).decode()


async def search_vector_store(request: Request[SearchVectorStore, None]) -> bytes:
    services, scope, body = request.services, _scope(request), request.body
    check_filter(body.filters)
    await store.get_usable_store(services, *scope)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if body.rewrite_query:
        queries = rewritten_queries(queries)
    results = await search_stores(services, scope.project_id, [scope.vector_store_id], queries, _search_options(body))
    return msgspec.json.encode(SearchResultsPage(search_query=queries, data=[_found_passage(result) for result in results]))


def _search_options(body: SearchVectorStore) -> SearchOptions:
    ranking = body.ranking_options or SearchRankingOptions()
    hybrid = ranking.hybrid_search
    return SearchOptions(
        limit=10 if body.max_num_results is None else body.max_num_results,
        filter=body.filters,
        score_threshold=ranking.score_threshold,
        ranker=ranking.ranker,
        embedding_weight=None if hybrid is None else hybrid.embedding_weight,
        text_weight=None if hybrid is None else hybrid.text_weight,
    )


def _found_passage(result: SearchResult) -> FoundPassage:
    passage = result.passage
    page = UNSET if passage.page is None else passage.page
    return FoundPassage(result.file_id, result.filename, result.score, result.attributes, [FileText(passage.text)], page)


async def create_vector_store_file(request: Request[CreateVectorStoreFile, None]) -> str:
    return await commands.attach_file(request.services, _scope(request), request.body, request.remember)


async def list_vector_store_files(request: Request[None, FilePage]) -> str:
    services, scope, page = request.services, _scope(request), request.query
    filters = {} if page.filter is None else {"status": page.filter}
    answer = await store.file_listing.page(services.db, page, scope._asdict(), filters)
    if answer is EMPTY_LIST:
        await store.get_store_json(services, *scope)
    return answer


async def get_vector_store_file(request: Request[None, None]) -> str:
    return await store.get_file_json(request.services, _scope(request), request.path["file_id"])


async def modify_vector_store_file(request: Request[ModifyVectorStoreFile, None]) -> str:
    return await commands.modify_file(request.services, _scope(request), request.path["file_id"], request.body.attributes or {})


async def get_vector_store_file_content(request: Request[None, None]) -> bytes:
    services, scope, file_id = request.services, _scope(request), request.path["file_id"]
    await store.get_usable_store(services, *scope)
    await store.get_file_json(services, scope, file_id)
    text = await store.get_text(services, scope, file_id)
    return msgspec.json.encode(FileContent(data=[FileText(text)] if text else []))


async def delete_vector_store_file(request: Request[None, None]) -> str:
    scope, file_id = _scope(request), request.path["file_id"]
    audit = request.audit("vector_store.file.deleted", f"{scope.vector_store_id}/{file_id}")
    await commands.detach_file(request.services, scope, file_id, audit)
    return msgspec.json.encode(Deleted(file_id, "vector_store.file.deleted")).decode()


async def create_file_batch(request: Request[CreateFileBatch, None]) -> str:
    return await commands.create_batch(request.services, _scope(request), request.body, request.remember)


async def get_file_batch(request: Request[None, None]) -> str:
    return await batches.get_batch_json(request.services, _scope(request), request.path["batch_id"])


async def cancel_file_batch(request: Request[None, None]) -> str:
    return await commands.cancel_batch(request.services, _scope(request), request.path["batch_id"])


async def list_files_in_batch(request: Request[None, FilePage]) -> str:
    services, scope, page, batch_id = request.services, _scope(request), request.query, request.path["batch_id"]
    filters = {} if page.filter is None else {"status": page.filter}
    answer = await store.batch_file_listing.page(services.db, page, {**scope._asdict(), "batch_id": batch_id}, filters)
    if answer is EMPTY_LIST:
        await batches.get_batch_json(services, scope, batch_id)
    return answer


_STORES = "/vector_stores"
_STORE = f"{_STORES}/{{vector_store_id}}"
_FILES = f"{_STORE}/files"
_FILE = f"{_FILES}/{{file_id}}"
_BATCHES = f"{_STORE}/file_batches"
_BATCH = f"{_BATCHES}/{{batch_id}}"

ROUTES = [
    Route(
        method="POST",
        path=_STORES,
        name="createVectorStore",
        summary="Create a vector store",
        call=create_vector_store,
        body=CreateVectorStore,
        body_optional=True,
        answer=VectorStore,
    ),
    Route(
        method="GET",
        path=_STORES,
        name="listVectorStores",
        summary="List vector stores",
        call=list_vector_stores,
        query=Page,
        answer=list_schema(VectorStore),
    ),
    Route(
        method="GET",
        path=_STORE,
        name="getVectorStore",
        summary="Get a vector store",
        call=get_vector_store,
        answer=VectorStore,
        polled=True,
    ),
    Route(
        method="POST",
        path=_STORE,
        name="modifyVectorStore",
        summary="Change a vector store",
        call=modify_vector_store,
        body=ModifyVectorStore,
        body_optional=True,
        answer=VectorStore,
    ),
    Route(
        method="DELETE",
        path=_STORE,
        name="deleteVectorStore",
        summary="Delete a vector store; its files stay",
        call=delete_vector_store,
        answer=Deleted,
    ),
    Route(
        method="POST",
        path=f"{_STORE}/search",
        name="searchVectorStore",
        summary="Search a vector store",
        call=search_vector_store,
        body=SearchVectorStore,
        answer=SearchResultsPage,
        scope="read",
    ),
    Route(
        method="POST",
        path=_FILES,
        name="createVectorStoreFile",
        summary="Add a file to a vector store",
        call=create_vector_store_file,
        body=CreateVectorStoreFile,
        answer=VectorStoreFile,
    ),
    Route(
        method="GET",
        path=_FILES,
        name="listVectorStoreFiles",
        summary="List the files of a vector store",
        call=list_vector_store_files,
        query=FilePage,
        answer=list_schema(VectorStoreFile),
    ),
    Route(
        method="GET",
        path=_FILE,
        name="getVectorStoreFile",
        summary="Get a file of a vector store",
        call=get_vector_store_file,
        answer=VectorStoreFile,
        polled=True,
    ),
    Route(
        method="POST",
        path=_FILE,
        name="updateVectorStoreFileAttributes",
        summary="Replace the attributes of a file of a vector store",
        call=modify_vector_store_file,
        body=ModifyVectorStoreFile,
        answer=VectorStoreFile,
    ),
    Route(
        method="DELETE",
        path=_FILE,
        name="deleteVectorStoreFile",
        summary="Take a file out of a vector store; the file stays",
        call=delete_vector_store_file,
        answer=Deleted,
    ),
    Route(
        method="GET",
        path=f"{_FILE}/content",
        name="retrieveVectorStoreFileContent",
        summary="Get the text that a file was parsed to",
        call=get_vector_store_file_content,
        answer=FileContent,
    ),
    Route(
        method="POST",
        path=_BATCHES,
        name="createVectorStoreFileBatch",
        summary="Add many files to a vector store",
        call=create_file_batch,
        body=CreateFileBatch,
        answer=FileBatch,
    ),
    Route(
        method="GET",
        path=_BATCH,
        name="getVectorStoreFileBatch",
        summary="Get a file batch",
        call=get_file_batch,
        answer=FileBatch,
        polled=True,
    ),
    Route(
        method="POST",
        path=f"{_BATCH}/cancel",
        name="cancelVectorStoreFileBatch",
        summary="Cancel what is left of a file batch",
        call=cancel_file_batch,
        answer=FileBatch,
    ),
    Route(
        method="GET",
        path=f"{_BATCH}/files",
        name="listFilesInVectorStoreBatch",
        summary="List the files of a file batch",
        call=list_files_in_batch,
        query=FilePage,
        answer=list_schema(VectorStoreFile),
    ),
]
