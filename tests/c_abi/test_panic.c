/* A panic in every entry point: an error for the caller, never the end of the process, and nothing
 * stays behind that would hinder the next call.
 *
 * Compiled only against a library with the feature panic-hook (WITH_PANIC_HOOK). The comments at
 * `entry:` are read by scripts/c-abi-test.sh: each exported function must have one. */
#include "harness.h"

#ifdef WITH_PANIC_HOOK

/* src/ffi/panic_hook.rs; in no header. */
uint32_t walrusds_test_panic(uint32_t place);
enum { IN_ENTRY = 1, IN_WORK = 2, IN_TASK = 3, IN_STARTED = 4 };

/* The call panics in `place`, which is noted as an error; afterwards nothing is armed any more. */
#define PANICS(place, call)                                \
  do {                                                     \
    CHECK_INT(walrusds_test_panic(place), 0);              \
    CALL(WALRUSDS_PANIC, "on purpose", call);              \
    CHECK_INT(walrusds_test_panic(0), 0);                  \
  } while (0)
/* The same for an output that is garbage before and zero afterwards. */
#define PANICS_ZEROED(place, out, call)                    \
  do {                                                     \
    memset(&(out), 0xAA, sizeof(out));                     \
    PANICS(place, call);                                   \
    CHECK(all_zero(&(out), sizeof(out)));                  \
  } while (0)
/* Without a place for the error, too. */
#define PANICS_QUIETLY(call)                               \
  do {                                                     \
    CHECK_INT(walrusds_test_panic(IN_ENTRY), 0);           \
    CHECK_INT((call), WALRUSDS_PANIC);                     \
    CHECK_INT(walrusds_test_panic(0), 0);                  \
  } while (0)
/* A function that returns nothing comes back. */
#define SURVIVES(call)                                     \
  do {                                                     \
    CHECK_INT(walrusds_test_panic(IN_ENTRY), 0);           \
    call;                                                  \
    CHECK_INT(walrusds_test_panic(0), 0);                  \
  } while (0)

static walrusds_query_options all; // all zero: everything

/* Every function still works on the handle. */
static void still_works(walrusds_handle handle) {
  const char *value = new_value();
  put_text(handle, "/after", value);
  expect_text(handle, "/after", value);
  OK(walrusds_delete(handle, NULL, S("/after"), &err));
  expect_text(handle, "/after", NULL);
}

static void in_the_entry(void) {
  walrusds_handle handle = 0;
  walrusds_query query = 0;
  walrusds_cancel_token token = 0;
  walrusds_op op = {WALRUSDS_OP_PUT, S("/b"), S("v")};
  walrusds_buf out = {NULL, 0, NULL};
  walrusds_page page = {NULL, 0, NULL};
  bool found = false, done = false;
  uint64_t number = 0;
  walrusds_lookup lookup = {S("/k"), 0, 0, false};
  walrusds_queue queue = 0;
  walrusds_completion completion;
  size_t len = 0;
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();

  /* entry: walrusds_abi_version. It has no barrier: it returns a constant. */
  CHECK_INT(walrusds_abi_version(), WALRUSDS_ABI_VERSION);
  /* entry: walrusds_disk_spec */
  PANICS(IN_ENTRY, walrusds_disk_spec(S(config), &out, &err));
  /* entry: walrusds_config_keys */
  PANICS(IN_ENTRY, walrusds_config_keys(&out, &err));
  /* entry: walrusds_open */
  PANICS(IN_ENTRY, walrusds_open(S(config), S(dir), NULL, &handle, &err));
  CHECK_INT(handle, 0);
  OK(walrusds_open(S(config), S(dir), NULL, &handle, &err));
  /* entry: walrusds_put */
  PANICS(IN_ENTRY, walrusds_put(handle, NULL, S("/k"), S("v"), &err));
  expect_text(handle, "/k", NULL);
  put_text(handle, "/k", "v");
  /* entry: walrusds_get */
  PANICS(IN_ENTRY, walrusds_get(handle, NULL, S("/k"), &out, &found, &err));
  walrusds_value value = {0, NULL};
  uint8_t byte = 0;
  /* entry: walrusds_get_value */
  PANICS(IN_ENTRY, walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  OK(walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  /* entry: walrusds_value_take */
  PANICS(IN_ENTRY, walrusds_value_take(&value, &byte, 1, &err));
  CHECK_INT(value.len, 1);
  /* entry: walrusds_value_free */
  SURVIVES(walrusds_value_free(&value));
  walrusds_value_free(&value);
  CHECK(all_zero(&value, sizeof value));
  found = false;
  /* entry: walrusds_has */
  PANICS(IN_ENTRY, walrusds_has(handle, NULL, S("/k"), &found, &err));
  /* entry: walrusds_get_size */
  PANICS(IN_ENTRY, walrusds_get_size(handle, NULL, S("/k"), &number, &found, &err));
  /* entry: walrusds_peek_size */
  PANICS(IN_ENTRY, walrusds_peek_size(handle, S("/k"), &number, &found, &done, &err));
  /* entry: walrusds_get_sizes */
  PANICS(IN_ENTRY, walrusds_get_sizes(handle, NULL, &lookup, 1, &err));
  /* entry: walrusds_queue_new */
  PANICS(IN_ENTRY, walrusds_queue_new(&queue, &err));
  OK(walrusds_queue_new(&queue, &err));
  /* entry: walrusds_get_start */
  PANICS(IN_ENTRY, walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, &found, &done, &err));
  /* entry: walrusds_batch_start */
  PANICS(IN_ENTRY, walrusds_batch_start(handle, NULL, &op, 1, queue, 1, &done, &err));
  /* entry: walrusds_queue_next */
  PANICS(IN_ENTRY, walrusds_queue_next(queue, NULL, &completion, 1, &len, &err));
  /* entry: walrusds_queue_close */
  PANICS(IN_ENTRY, walrusds_queue_close(queue, &err));
  OK(walrusds_queue_close(queue, &err));
  CHECK(!found && !done && number == 0 && out.data == NULL);
  /* entry: walrusds_delete */
  PANICS(IN_ENTRY, walrusds_delete(handle, NULL, S("/k"), &err));
  expect_text(handle, "/k", "v");
  /* entry: walrusds_batch_commit */
  PANICS(IN_ENTRY, walrusds_batch_commit(handle, NULL, &op, 1, &err));
  expect_text(handle, "/b", NULL);
  /* entry: walrusds_query_open */
  PANICS(IN_ENTRY, walrusds_query_open(handle, NULL, &all, &query, &err));
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  /* entry: walrusds_query_next */
  PANICS(IN_ENTRY, walrusds_query_next(query, NULL, &page, &err));
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 1);
  /* entry: walrusds_page_free */
  SURVIVES(walrusds_page_free(&page));
  walrusds_page_free(&page);
  CHECK(all_zero(&page, sizeof page));
  /* entry: walrusds_query_close */
  PANICS(IN_ENTRY, walrusds_query_close(query, &err));
  OK(walrusds_query_close(query, &err));
  /* entry: walrusds_sync */
  PANICS(IN_ENTRY, walrusds_sync(handle, NULL, NULL, 0, &err));
  /* entry: walrusds_disk_usage */
  PANICS(IN_ENTRY, walrusds_disk_usage(handle, NULL, &number, &err));
  /* entry: walrusds_metrics */
  PANICS(IN_ENTRY, walrusds_metrics(handle, &out, &err));
  /* entry: walrusds_open_metrics */
  PANICS(IN_ENTRY, walrusds_open_metrics(handle, &out, &err));
  /* entry: walrusds_spans */
  PANICS(IN_ENTRY, walrusds_spans(&out, &err));
  /* entry: walrusds_log_next */
  PANICS(IN_ENTRY, walrusds_log_next(handle, &out, &found, &err));
  /* entry: walrusds_cancel_new */
  PANICS(IN_ENTRY, walrusds_cancel_new(&token, &err));
  OK(walrusds_cancel_new(&token, &err));
  /* entry: walrusds_cancel */
  PANICS(IN_ENTRY, walrusds_cancel(token, &err));
  /* entry: walrusds_cancel_free */
  PANICS(IN_ENTRY, walrusds_cancel_free(token, &err));
  OK(walrusds_cancel_free(token, &err));
  /* entry: walrusds_buf_free */
  OK(walrusds_metrics(handle, &out, &err));
  SURVIVES(walrusds_buf_free(&out));
  walrusds_buf_free(&out);
  CHECK(all_zero(&out, sizeof out));
  /* entry: walrusds_error_free */
  walrusds_error error;
  CHECK_INT(walrusds_close(0, &error), WALRUSDS_INVALID_ARGUMENT);
  SURVIVES(walrusds_error_free(&error));
  walrusds_error_free(&error);
  CHECK(all_zero(&error.message, sizeof error.message));

  PANICS_QUIETLY(walrusds_put(handle, NULL, S("/k"), S("v"), NULL));
  still_works(handle);
  /* entry: walrusds_close */
  PANICS(IN_ENTRY, walrusds_close(handle, &err));
  still_works(handle);
  close_ok(handle);
}

static void in_the_work(void) {
  walrusds_handle handle = 0;
  walrusds_query query = 0;
  walrusds_op op = {WALRUSDS_OP_PUT, S("/b"), S("v")};
  walrusds_value value = {0, NULL};
  walrusds_buf out;
  walrusds_page page;
  bool found;
  uint64_t number;
  walrusds_lookup lookup = {S("/k"), 0, 0, false};
  walrusds_queue queue = 0;
  walrusds_completion completion;
  size_t len;
  bool done;
  walrusds_call call = {0, 60000, NULL}; /* with a deadline the wait is another */
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();

  PANICS_ZEROED(IN_WORK, handle, walrusds_open(S(config), S(dir), NULL, &handle, &err));
  PANICS_ZEROED(IN_WORK, handle, walrusds_open(S(config), S(dir), &call, &handle, &err));
  PANICS_ZEROED(IN_TASK, handle, walrusds_open(S(config), S(dir), NULL, &handle, &err));
  OK(walrusds_open(S(config), S(dir), NULL, &handle, &err));
  for (int with_deadline = 0; with_deadline < 2; with_deadline++) {
    const walrusds_call *c = with_deadline ? &call : NULL;
    PANICS(IN_WORK, walrusds_put(handle, c, S("/k"), S("v"), &err));
    expect_text(handle, "/k", NULL);
    put_text(handle, "/k", "v");
    PANICS_ZEROED(IN_WORK, out, walrusds_get(handle, c, S("/k"), &out, &found, &err));
    CHECK(!found);
    PANICS_ZEROED(IN_WORK, value, walrusds_get_value(handle, c, S("/k"), &value, &found, &err));
    CHECK(!found);
    PANICS_ZEROED(IN_WORK, found, walrusds_has(handle, c, S("/k"), &found, &err));
    PANICS_ZEROED(IN_WORK, number, walrusds_get_size(handle, c, S("/k"), &number, &found, &err));
    CHECK(!found);
    PANICS(IN_WORK, walrusds_get_sizes(handle, c, &lookup, 1, &err));
    CHECK(!lookup.found);
    /* A panic in a started call comes as its outcome. */
    OK(walrusds_queue_new(&queue, &err));
    for (uint64_t tag = 1; tag <= 2; tag++) {
      CHECK_INT(walrusds_test_panic(IN_STARTED), 0);
      if (tag == 1)
        OK(walrusds_get_start(handle, c, S("/k"), queue, tag, &out, &found, &done, &err));
      else
        OK(walrusds_batch_start(handle, c, &op, 1, queue, tag, &done, &err));
      CHECK(!done);
      OK(walrusds_queue_next(queue, c, &completion, 1, &len, &err));
      CHECK(len == 1 && completion.tag == tag && !completion.found);
      CHECK_INT(completion.error.code, WALRUSDS_PANIC);
      CHECK(holds(completion.error.message.data, completion.error.message.len, "on purpose"));
      walrusds_error_free(&completion.error);
    }
    PANICS_ZEROED(IN_WORK, len, walrusds_queue_next(queue, c, &completion, 1, &len, &err));
    OK(walrusds_queue_close(queue, &err));
    PANICS(IN_WORK, walrusds_delete(handle, c, S("/k"), &err));
    expect_text(handle, "/k", "v");
    PANICS(IN_WORK, walrusds_batch_commit(handle, c, &op, 1, &err));
    expect_text(handle, "/b", NULL);
    OK(walrusds_query_open(handle, c, &all, &query, &err));
    PANICS_ZEROED(IN_WORK, page, walrusds_query_next(query, c, &page, &err));
    OK(walrusds_query_next(query, c, &page, &err));
    CHECK_INT(page.len, 1);
    walrusds_page_free(&page);
    OK(walrusds_query_close(query, &err));
    PANICS(IN_WORK, walrusds_sync(handle, c, NULL, 0, &err));
    PANICS_ZEROED(IN_WORK, number, walrusds_disk_usage(handle, c, &number, &err));
    still_works(handle);
    OK(walrusds_delete(handle, c, S("/k"), &err));
  }
  /* The handle is invalid after a close, for every code. */
  PANICS(IN_WORK, walrusds_close(handle, &err));
  CALL(WALRUSDS_CLOSED, NULL, walrusds_close(handle, &err));
}

static void *put_many(void *arg) {
  walrusds_handle handle = *(walrusds_handle *)arg;
  for (int i = 0; i < 50; i++) {
    int32_t rc = walrusds_put(handle, NULL, S(text("/%d", i)), S(new_value()), NULL);
    CHECK(rc == WALRUSDS_OK || rc == WALRUSDS_PANIC);
  }
  return NULL;
}

/* Others' calls are in flight on the same handle while one after another panics. */
static void among_others(void) {
  walrusds_handle handle = open_new();
  pthread_t threads[4];
  for (int t = 0; t < 4; t++) threads[t] = start(put_many, &handle);
  for (int i = 0; i < 200; i++) {
    bool found;
    walrusds_test_panic(i % 2 ? IN_ENTRY : IN_WORK);
    int32_t rc = walrusds_has(handle, NULL, S("/0"), &found, NULL); /* or a put takes the panic */
    CHECK(rc == WALRUSDS_OK || rc == WALRUSDS_PANIC);
  }
  for (int t = 0; t < 4; t++) join(threads[t]);
  walrusds_test_panic(0);
  still_works(handle);
  close_ok(handle);
}

const struct test panic_tests[] = {
    {"panic in every entry point", in_the_entry, 1},
    {"panic in the work of every entry point", in_the_work, 1},
    {"panics among other calls", among_others, 1},
    {NULL, NULL, 0},
};

#else

const struct test panic_tests[] = {{NULL, NULL, 0}};

#endif
