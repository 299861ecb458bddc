/* Listings. */
#include "harness.h"

static size_t count(void) { return quick ? 150 : 2500; }

static walrusds_handle open_filled(void) {
  walrusds_handle handle = open_new();
  size_t n = count();
  walrusds_op *ops = calloc(n, sizeof *ops);
  char(*keys)[24] = calloc(n, sizeof *keys);
  for (size_t i = 0; i < n; i++) {
    snprintf(keys[i], sizeof keys[i], "/%s/%05zu", i % 2 ? "odd" : "even", i);
    ops[i] = (walrusds_op){WALRUSDS_OP_PUT, S(keys[i]), S(keys[i])};
  }
  OK(walrusds_batch_commit(handle, NULL, ops, n, &err));
  free(keys);
  free(ops);
  return handle;
}

static walrusds_query query_open(walrusds_handle handle, const char *prefix, bool keys_only,
                                 uint64_t offset, uint64_t limit) {
  walrusds_query_options options = {.prefix = bytes_of(prefix), .prefix_len = strlen(prefix),
                                    .keys_only = keys_only, .offset = offset, .limit = limit};
  walrusds_query query = 0;
  OK(walrusds_query_open(handle, NULL, &options, &query, &err));
  CHECK(query != 0);
  return query;
}

/* Lists, checks every entry, and gives the number of them. */
static uint64_t list(walrusds_handle handle, const char *prefix, bool keys_only, uint64_t offset,
                     uint64_t limit) {
  walrusds_query query = query_open(handle, prefix, keys_only, offset, limit);
  uint64_t n = 0;
  char last[24] = "";
  for (;;) {
    walrusds_page page;
    memset(&page, 0xAA, sizeof page);
    OK(walrusds_query_next(query, NULL, &page, &err));
    if (page.len == 0) {
      CHECK(all_zero(&page, sizeof page));
      break;
    }
    for (size_t i = 0; i < page.len; i++) {
      const walrusds_entry *e = &page.entries[i];
      char key[24] = "";
      CHECK(e->key_len < sizeof key);
      memcpy(key, e->key, e->key_len < sizeof key ? e->key_len : 0);
      CHECK(strcmp(last, key) < 0); /* in order, none twice */
      strcpy(last, key);
      CHECK(strncmp(key, prefix, strlen(prefix)) == 0);
      CHECK_INT(e->code, WALRUSDS_OK);
      CHECK(e->message == NULL && e->message_len == 0);
      CHECK_INT(e->size, e->key_len);
      CHECK(e->expires_at >= 0);
      if (keys_only)
        CHECK(e->value == NULL && e->value_len == 0);
      else
        CHECK(e->value_len == e->key_len && memcmp(e->value, e->key, e->key_len) == 0);
    }
    n += page.len;
    walrusds_page_free(&page);
  }
  /* A query that has ended returns the end again. */
  walrusds_page page;
  FAILS_ZEROED(WALRUSDS_OK, NULL, page, walrusds_query_next(query, NULL, &page, &err));
  OK(walrusds_query_close(query, &err));
  return n;
}

static void pages(void) {
  walrusds_handle handle = open_filled();
  uint64_t n = count();
  CHECK_INT(list(handle, "", true, 0, 0), n);
  CHECK_INT(list(handle, "/", false, 0, 0), n);
  CHECK_INT(list(handle, "/even", true, 0, 0), (n + 1) / 2);
  CHECK_INT(list(handle, "/odd/", false, 0, 0), n / 2);
  CHECK_INT(list(handle, "/od", true, 0, 0), 0); /* a path, no prefix of a name */
  CHECK_INT(list(handle, "/odd/00001", true, 0, 0), 0); /* strictly below */
  CHECK_INT(list(handle, "", true, 0, 1), 1);
  CHECK_INT(list(handle, "", false, 0, 100), 100);
  CHECK_INT(list(handle, "", true, 0, UINT64_MAX), n);
  CHECK_INT(list(handle, "", true, n - 3, 0), 3);
  CHECK_INT(list(handle, "", true, n, 0), 0);
  CHECK_INT(list(handle, "", true, UINT64_MAX, 5), 0);
  CHECK_INT(list(handle, "/odd", false, 10, 7), 7);
  CHECK_INT(list(handle, "/odd", true, n / 2 - 2, 7), 2);
  close_ok(handle);
}

static void nothing_to_list(void) {
  walrusds_handle handle = open_new();
  CHECK_INT(list(handle, "", true, 0, 0), 0);
  CHECK_INT(list(handle, "", false, 0, 0), 0);
  walrusds_query_options options = {.prefix = bytes_of("/\xff"), .prefix_len = 2, .keys_only = true};
  walrusds_query query;
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "UTF-8", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  close_ok(handle);
}

/* The keys of a query, each followed by a space. */
static void expect_keys(walrusds_handle handle, const walrusds_query_options *options, const char *expected) {
  walrusds_query query = 0;
  OK(walrusds_query_open(handle, NULL, options, &query, &err));
  char keys[256] = "";
  for (;;) {
    walrusds_page page;
    OK(walrusds_query_next(query, NULL, &page, &err));
    if (page.len == 0) break;
    for (size_t i = 0; i < page.len; i++) {
      size_t used = strlen(keys), len = page.entries[i].key_len;
      CHECK(used + len + 2 < sizeof keys);
      if (used + len + 2 >= sizeof keys) break;
      memcpy(keys + used, page.entries[i].key, len);
      memcpy(keys + used + len, " ", 2);
    }
    walrusds_page_free(&page);
  }
  OK(walrusds_query_close(query, &err));
  CHECK(strcmp(keys, expected) == 0);
}

static void conditions_and_order(void) {
  walrusds_handle handle = open_new();
  const char *keys[] = {"/a", "/a/1", "/a/2", "/a/2x", "/a/3", "/b/2"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    OK(walrusds_put(handle, NULL, S(keys[i]), S("v"), &err));
  struct {
    uint32_t kind;
    const char *keys;
  } cases[] = {
      {WALRUSDS_KEY_EQUAL, "/a/2 "},
      {WALRUSDS_KEY_NOT_EQUAL, "/a/3 /a/2x /a/1 "},
      {WALRUSDS_KEY_LESS, "/a/1 "},
      {WALRUSDS_KEY_LESS_OR_EQUAL, "/a/2 /a/1 "},
      {WALRUSDS_KEY_GREATER, "/a/3 /a/2x "},
      {WALRUSDS_KEY_GREATER_OR_EQUAL, "/a/3 /a/2x /a/2 "},
      {WALRUSDS_KEY_STARTS_WITH, "/a/2x /a/2 "},
  };
  walrusds_query_options options = {.prefix = bytes_of("/a"), .prefix_len = 2, .descending = true, .keys_only = true};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    walrusds_key_condition condition = {cases[i].kind, S("/a/2")};
    options.conditions = &condition;
    options.conditions_len = 1;
    expect_keys(handle, &options, cases[i].keys);
  }
  walrusds_key_condition both[] = {{WALRUSDS_KEY_GREATER, S("/a/1")}, {WALRUSDS_KEY_NOT_EQUAL, S("/a/2x")}};
  options.conditions = both;
  options.conditions_len = 2;
  expect_keys(handle, &options, "/a/3 /a/2 ");
  options.offset = 1;
  expect_keys(handle, &options, "/a/2 ");
  options.offset = 0;
  options.limit = 1;
  expect_keys(handle, &options, "/a/3 ");
  options.conditions_len = 0; /* what it points at does not matter */
  expect_keys(handle, &options, "/a/3 ");

  walrusds_query query;
  options.conditions = NULL;
  options.conditions_len = 1;
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "conditions is NULL", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  options.conditions = both;
  options.conditions_len = SIZE_MAX / sizeof *both;
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "impossible", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  options.conditions_len = 2;
  both[1].kind = 0;
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "condition 1: kind is 0", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  both[1] = (walrusds_key_condition){WALRUSDS_KEY_LESS, bytes_of("\xff"), 1};
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "UTF-8", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  both[1] = (walrusds_key_condition){WALRUSDS_KEY_LESS, NULL, 1};
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "text is NULL", query,
               walrusds_query_open(handle, NULL, &options, &query, &err));
  close_ok(handle);
}

static void empty_values(void) {
  walrusds_handle handle = open_new();
  OK(walrusds_put(handle, NULL, S("/empty"), NULL, 0, &err));
  walrusds_query query = query_open(handle, "", false, 0, 0);
  walrusds_page page;
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 1);
  if (page.len == 1) {
    CHECK_INT(page.entries[0].code, WALRUSDS_OK);
    CHECK(page.entries[0].value == NULL && page.entries[0].value_len == 0 && page.entries[0].size == 0);
  }
  walrusds_page_free(&page);
  OK(walrusds_query_close(query, &err));
  close_ok(handle);
}

static void early_close(void) {
  walrusds_handle handle = open_filled();
  walrusds_page page;
  OK(walrusds_query_close(query_open(handle, "", false, 0, 0), &err)); /* never asked */
  walrusds_query query = query_open(handle, "", false, 0, 0);
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK(page.len > 0);
  OK(walrusds_query_close(query, &err));
  /* The page outlives its query. */
  CHECK(page.len > 0 && page.entries[0].value_len == page.entries[0].key_len);
  walrusds_page_free(&page);
  FAILS_ZEROED(WALRUSDS_CLOSED, "query is closed", page, walrusds_query_next(query, NULL, &page, &err));
  CALL(WALRUSDS_CLOSED, "query is closed", walrusds_query_close(query, &err));
  close_ok(handle);
}

static void closing_the_datastore_ends_queries(void) {
  walrusds_handle handle = open_filled();
  walrusds_query fresh = query_open(handle, "", false, 0, 0);
  walrusds_query begun = query_open(handle, "", true, 0, 0);
  walrusds_page page;
  OK(walrusds_query_next(begun, NULL, &page, &err));
  close_ok(handle);
  CHECK(page.len > 0 && page.entries[0].key_len > 0);
  walrusds_page_free(&page);
  FAILS_ZEROED(WALRUSDS_CLOSED, NULL, page, walrusds_query_next(fresh, NULL, &page, &err));
  FAILS_ZEROED(WALRUSDS_CLOSED, NULL, page, walrusds_query_next(begun, NULL, &page, &err));
  CALL(WALRUSDS_CLOSED, NULL, walrusds_query_close(fresh, &err));
  CALL(WALRUSDS_CLOSED, NULL, walrusds_query_close(begun, &err));
}

static void delete_while_listing(void) {
  walrusds_handle handle = open_filled();
  walrusds_query query = query_open(handle, "", true, 0, 0);
  uint64_t n = 0;
  for (;;) {
    walrusds_page page;
    OK(walrusds_query_next(query, NULL, &page, &err));
    if (page.len == 0) break;
    for (size_t i = 0; i < page.len; i++) {
      if (n++ % 10 != 0) continue;
      OK(walrusds_delete(handle, NULL, page.entries[i].key, page.entries[i].key_len, &err));
    }
    walrusds_page_free(&page);
  }
  CHECK_INT(n, count());
  OK(walrusds_query_close(query, &err));
  CHECK_INT(list(handle, "", true, 0, 0), count() - (count() + 9) / 10);
  close_ok(handle);
}

struct share {
  walrusds_query query;
  atomic_ullong entries;
};

static void *take_pages(void *arg) {
  struct share *share = arg;
  for (;;) {
    walrusds_page page;
    OK(walrusds_query_next(share->query, NULL, &page, &err));
    if (page.len == 0) return NULL;
    atomic_fetch_add(&share->entries, page.len);
    walrusds_page_free(&page);
  }
}

static void threads_share_a_query(void) {
  walrusds_handle handle = open_filled();
  struct share share = {query_open(handle, "", false, 0, 0), 0};
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) threads[i] = start(take_pages, &share);
  for (int i = 0; i < 4; i++) join(threads[i]);
  CHECK_INT(atomic_load(&share.entries), count());
  OK(walrusds_query_close(share.query, &err));
  close_ok(handle);
}

const struct test query_tests[] = {
    {"pages, prefix, offset, limit", pages, 1},
    {"nothing to list", nothing_to_list, 1},
    {"conditions and order", conditions_and_order, 1},
    {"empty values in a listing", empty_values, 1},
    {"early close of a query", early_close, 1},
    {"closing the datastore ends queries", closing_the_datastore_ends_queries, 1},
    {"deleting while listing", delete_while_listing, 1},
    {"threads share a query", threads_share_a_query, 1},
    {NULL, NULL, 0},
};
