/* Single keys: put, get, has, get_size, delete. */
#include "harness.h"

static void put_get_delete(void) {
  walrusds_handle handle = open_new();
  expect_text(handle, "/k", NULL);
  put_text(handle, "/k", "first");
  put_text(handle, "/k", "second");
  put_text(handle, "/other", "third");
  OK(walrusds_delete(handle, NULL, S("/k"), &err));
  expect_text(handle, "/k", NULL);
  expect_text(handle, "/other", "third");
  OK(walrusds_delete(handle, NULL, S("/k"), &err));
  put_text(handle, "/k", "again");
  close_ok(handle);
}

static void sizes(void) {
  walrusds_handle handle = open_new();
  size_t all[] = {0, 1, 2 << 20, (size_t)17 << 20};
  for (size_t i = 0; i < (quick ? 3 : 4); i++) {
    uint8_t *value = pattern(all[i], (unsigned)i);
    const char *key = text("/size/%zu", all[i]);
    OK(walrusds_put(handle, NULL, S(key), value, all[i], &err));
    expect_bytes(handle, key, value, all[i]);
    free(value);
  }
  close_ok(handle);
}

static void inputs_are_borrowed(void) {
  /* They may be changed and freed as soon as the call is over; outputs are no views of them. */
  walrusds_handle handle = open_new();
  uint8_t *value = pattern(100000, 1), *same = pattern(100000, 1);
  char *key = malloc(8);
  strcpy(key, "/key");
  OK(walrusds_put(handle, NULL, S(key), value, 100000, &err));
  memset(value, 0, 100000);
  memset(key, 'x', 8);
  free(value);
  free(key);
  walrusds_buf one, two;
  bool found;
  OK(walrusds_get(handle, NULL, S("/key"), &one, &found, &err));
  OK(walrusds_get(handle, NULL, S("/key"), &two, &found, &err));
  close_ok(handle);
  /* Buffers outlive the datastore, and each other. */
  CHECK(one.len == 100000 && memcmp(one.data, same, one.len) == 0);
  walrusds_buf_free(&one);
  CHECK(two.len == 100000 && memcmp(two.data, same, two.len) == 0);
  walrusds_buf_free(&two);
  free(same);
}

static void values_are_taken_later(void) {
  /* From memory, the network and the journal's files, into the caller's memory. */
  const char *dir = new_dir();
  const char *more[] = {"", ", \"journalPath\": \"journal\""};
  size_t lens[] = {1, 4096, 300000, 2 << 20};
  for (size_t journal = 0; journal < 2; journal++) {
    walrusds_handle handle = open_at(config_for(net_url, net_url, more[journal]), dir);
    walrusds_value values[4], gone;
    bool found = true;
    for (size_t i = 0; i < 4; i++) {
      uint8_t *value = pattern(lens[i], (unsigned)(10 * journal + i));
      const char *key = text("/later/%zu", i);
      OK(walrusds_put(handle, NULL, S(key), value, lens[i], &err));
      OK(walrusds_get_value(handle, NULL, S(key), &values[i], &found, &err));
      CHECK(found);
      CHECK_INT(values[i].len, lens[i]);
      free(value);
    }
    FAILS_ZEROED(WALRUSDS_OK, NULL, gone,
                 walrusds_get_value(handle, NULL, S("/later/none"), &gone, &found, &err));
    CHECK(!found);
    OK(walrusds_put(handle, NULL, S("/later/empty"), NULL, 0, &err));
    FAILS_ZEROED(WALRUSDS_OK, NULL, gone,
                 walrusds_get_value(handle, NULL, S("/later/empty"), &gone, &found, &err));
    CHECK(found);
    OK(walrusds_value_take(&gone, NULL, 0, &err));
    close_ok(handle);
    /* They outlive the datastore, and are what was there. */
    for (size_t i = 0; i < 4; i++) {
      uint8_t *value = pattern(lens[i], (unsigned)(10 * journal + i)), *into = malloc(lens[i] + 1);
      CALL(WALRUSDS_INVALID_ARGUMENT, "the length of the value",
           walrusds_value_take(&values[i], into, lens[i] + 1, &err));
      OK(walrusds_value_take(&values[i], into, lens[i], &err));
      CHECK(memcmp(value, into, lens[i]) == 0);
      CHECK(all_zero(&values[i], sizeof values[i]));
      free(value);
      free(into);
    }
  }
}

static void empty_slices(void) {
  walrusds_handle handle = open_new();
  OK(walrusds_put(handle, NULL, S("/null"), NULL, 0, &err));
  expect_text(handle, "/null", "");
  OK(walrusds_put(handle, NULL, S("/pointer"), bytes_of("ignored"), 0, &err));
  expect_text(handle, "/pointer", "");
  /* The empty key is a key like any other, however it is given. */
  OK(walrusds_put(handle, NULL, NULL, 0, S("v"), &err));
  expect_text(handle, "", "v");
  OK(walrusds_put(handle, NULL, bytes_of("/k"), 0, S("w"), &err));
  expect_text(handle, "", "w");
  expect_text(handle, "/k", NULL);
  OK(walrusds_delete(handle, NULL, NULL, 0, &err));
  expect_text(handle, "", NULL);
  close_ok(handle);
}

static void odd_keys(void) {
  walrusds_handle handle = open_new();
  char longest[2049];
  memset(longest, 'k', sizeof longest);
  longest[0] = '/';
  bool found = true;
  OK(walrusds_put(handle, NULL, bytes_of(longest), 2048, S("v"), &err));
  OK(walrusds_has(handle, NULL, bytes_of(longest), 2048, &found, &err));
  CHECK(found);
  CALL(WALRUSDS_INVALID_ARGUMENT, "too long",
       walrusds_put(handle, NULL, bytes_of(longest), 2049, S("v"), &err));
  CALL(WALRUSDS_INVALID_ARGUMENT, "NUL", walrusds_put(handle, NULL, bytes_of("/a\0b"), 4, S("v"), &err));
  CALL(WALRUSDS_INVALID_ARGUMENT, "UTF-8", walrusds_put(handle, NULL, S("/\xff"), S("v"), &err));
  const struct {
    const char *key;
    size_t len;
  } impossible[] = {{longest, 2049}, {"/a\0b", 4}, {"/\xff", 2}};
  for (size_t i = 0; i < 3; i++) {
    const uint8_t *key = bytes_of(impossible[i].key);
    size_t len = impossible[i].len;
    walrusds_buf out;
    uint64_t size;
    FAILS_ZEROED(WALRUSDS_OK, NULL, found, walrusds_has(handle, NULL, key, len, &found, &err));
    FAILS_ZEROED(WALRUSDS_OK, NULL, found, walrusds_get(handle, NULL, key, len, &out, &found, &err));
    FAILS_ZEROED(WALRUSDS_OK, NULL, found,
                 walrusds_get_size(handle, NULL, key, len, &size, &found, &err));
    OK(walrusds_delete(handle, NULL, key, len, &err));
  }
  put_text(handle, "no slash, spaces and \xc3\xa4\xe2\x82\xac \"'\\%_", "v");
  close_ok(handle);
}

static void too_large(void) {
  walrusds_handle handle = open_new();
  size_t len = (size_t)33 << 20; /* the publisher takes 32 MiB */
  uint8_t *value = pattern(len, 3);
  CALL(WALRUSDS_TOO_LARGE, NULL, walrusds_put(handle, NULL, S("/large"), value, len, &err));
  free(value);
  expect_text(handle, "/large", NULL);
  put_text(handle, "/small", "v");
  close_ok(handle);
}

static void unreachable_publisher(void) {
  const char *config = config_for("http://127.0.0.1:1", net_url, ", \"maxRetries\": 0");
  walrusds_handle handle = open_at(config, new_dir());
  walrusds_error err;
  CHECK_INT(walrusds_put(handle, NULL, S("/k"), S("v"), &err), WALRUSDS_WALRUS);
  CHECK(err.retryable);
  walrusds_error_free(&err);
  expect_text(handle, "/k", NULL);
  close_ok(handle);
}

static void *get_lost_blob(void *arg) {
  walrusds_handle *handle = arg;
  walrusds_buf out;
  bool found;
  FAILS_ZEROED(WALRUSDS_BLOB_NOT_FOUND, "/k", out,
               walrusds_get(*handle, NULL, S("/k"), &out, &found, &err));
  CHECK(!found);
  return NULL;
}

static void lost_blob(void) {
  /* The other Walrus does not have the blobs of the first. (A 404 is asked again for 15 seconds:
   * caches repeat 404s from before a blob was stored.) */
  walrusds_handle handle = open_at(config_for(net_url, slow_url, ""), new_dir());
  const char *value = new_value();
  OK(walrusds_put(handle, NULL, S("/k"), S(value), &err));
  pthread_t thread = start(get_lost_blob, &handle);
  /* The listing goes on behind an entry that cannot be read. */
  OK(walrusds_put(handle, NULL, S("/z"), NULL, 0, &err));
  walrusds_query query = 0;
  walrusds_query_options all = {0};
  walrusds_page page;
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 2);
  if (page.len == 2) {
    CHECK_INT(page.entries[0].code, WALRUSDS_BLOB_NOT_FOUND);
    CHECK(holds(page.entries[0].message, page.entries[0].message_len, "/k"));
    CHECK(page.entries[0].value == NULL && page.entries[0].value_len == 0);
    CHECK_INT(page.entries[0].size, strlen(value));
    CHECK_INT(page.entries[1].code, WALRUSDS_OK);
    CHECK(page.entries[1].message == NULL && page.entries[1].message_len == 0);
  }
  walrusds_page_free(&page);
  OK(walrusds_query_close(query, &err));
  join(thread);
  close_ok(handle);
}

static void wrong_bytes(void) {
  /* The key is the multihash of something else (the sha2-256 of nothing). */
  walrusds_buf out;
  bool found;
  const char *key = "/blocks/CIQOHMGEIKMPYHAUTL57JSEZN64SIJ5OIHSGJG4TJSSJLGI3PBJLQVI";
  walrusds_handle handle = open_new();
  CALL(WALRUSDS_INVALID_ARGUMENT, key, walrusds_put(handle, NULL, S(key), S("not nothing"), &err));
  OK(walrusds_get(handle, NULL, S(key), &out, &found, &err));
  CHECK(!found);
  OK(walrusds_put(handle, NULL, S(key), NULL, 0, &err));
  expect_text(handle, key, "");
  close_ok(handle);
}

const struct test value_tests[] = {
    {"put, get, delete", put_get_delete, 1},
    {"values of 0 bytes to 17 MiB", sizes, 1},
    {"inputs are borrowed, outputs owned", inputs_are_borrowed, 1},
    {"values are taken later", values_are_taken_later, 1},
    {"empty slices", empty_slices, 1},
    {"odd keys", odd_keys, 1},
    {"a value too large", too_large, 0},
    {"unreachable publisher", unreachable_publisher, 1},
    {"a lost blob", lost_blob, 0},
    {"wrong bytes", wrong_bytes, 1},
    {NULL, NULL, 0},
};
