/* Many keys at once, answers from memory, and calls that are started and fetched from a queue. */
#include "harness.h"

#define BAD WALRUSDS_INVALID_ARGUMENT

static walrusds_queue queue_new(void) {
  walrusds_queue queue = 0;
  OK(walrusds_queue_new(&queue, &err));
  CHECK(queue != 0);
  return queue;
}

static walrusds_handle open_slow(const char *more) {
  return open_at(config_for(slow_url, slow_url, more), new_dir());
}

static walrusds_handle open_with_journal(void) {
  return open_at(config_for(net_url, net_url, ", \"journalPath\": \"journal\""), new_dir());
}

/* Starts a get that has to wait for an aggregator. */
static void start_get(walrusds_handle handle, const walrusds_call *call, const char *key,
                      walrusds_queue queue, uint64_t tag) {
  walrusds_buf out;
  bool found, done;
  OK(walrusds_get_start(handle, call, S(key), queue, tag, &out, &found, &done, &err));
  CHECK(!done && !found && out.data == NULL);
}

/* The next outcome, which has to come soon. Its error is freed, its value is the caller's. */
static walrusds_completion next(walrusds_queue queue, int32_t code) {
  walrusds_call call = {0, 60000, NULL};
  walrusds_completion c;
  memset(&c, 0, sizeof c);
  size_t len = 0;
  OK(walrusds_queue_next(queue, &call, &c, 1, &len, &err));
  CHECK_INT(len, 1);
  CHECK_INT(c.error.code, code);
  CHECK((c.error.message.len > 0) == (code != WALRUSDS_OK));
  CHECK(c.found || c.value.data == NULL);
  walrusds_error_free(&c.error);
  return c;
}

static void many_keys_at_once(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/one", "1");
  put_text(handle, "/three", "333");
  put_text(handle, "/empty", "");
  char *too_long = malloc(4000);
  memset(too_long, 'k', 4000);
  walrusds_lookup lookups[] = {
      {S("/three"), 9, 9, true},      {S("/unknown"), 9, 9, true}, {S("/one"), 9, 9, false},
      {S("\xff\xfe"), 9, 9, true},    {NULL, 0, 9, 9, true},       {bytes_of("/n\0l"), 4, 9, 9, true},
      {bytes_of(too_long), 4000, 9, 9, true}, {S("/empty"), 9, 9, false}, {S("/three"), 9, 9, false},
  };
  const int64_t expected[] = {3, -1, 1, -1, -1, -1, -1, 0, 3};
  const size_t count = sizeof lookups / sizeof *lookups;
  OK(walrusds_get_sizes(handle, NULL, lookups, count, &err));
  for (size_t i = 0; i < count; i++) {
    CHECK_INT(lookups[i].code, WALRUSDS_OK);
    CHECK_INT(lookups[i].found ? (int64_t)lookups[i].size : -1, expected[i]);
    CHECK(lookups[i].found || lookups[i].size == 0);
  }
  OK(walrusds_get_sizes(handle, NULL, NULL, 0, &err));

  CALL(BAD, "lookups is NULL", walrusds_get_sizes(handle, NULL, NULL, 1, &err));
  CALL(BAD, "impossible", walrusds_get_sizes(handle, NULL, lookups, SIZE_MAX, &err));
  walrusds_lookup bad[] = {{S("/one"), 9, 9, true}, {NULL, 3, 9, 9, true}};
  CALL(BAD, "lookup 1: key is NULL", walrusds_get_sizes(handle, NULL, bad, 2, &err));
  for (int i = 0; i < 2; i++) CHECK(!bad[i].found && bad[i].size == 0 && bad[i].code == 0);
  walrusds_call call = {0, 0, NULL};
  OK(walrusds_cancel_new(&call.cancel, &err));
  OK(walrusds_cancel(call.cancel, &err));
  CALL(WALRUSDS_CANCELED, "cancelled", walrusds_get_sizes(handle, &call, lookups, count, &err));
  CHECK(!lookups[0].found);
  OK(walrusds_cancel_free(call.cancel, &err));
  close_ok(handle);
  CALL(WALRUSDS_CLOSED, "closed", walrusds_get_sizes(handle, NULL, lookups, count, &err));
  free(too_long);
}

static void from_memory(void) {
  walrusds_handle handle = open_with_journal();
  uint64_t size;
  bool found, known;
  put_text(handle, "/k", "value");
  OK(walrusds_peek_size(handle, S("/k"), &size, &found, &known, &err));
  CHECK(known && found);
  CHECK_INT(size, 5);
  OK(walrusds_peek_size(handle, S("/unknown"), &size, &found, &known, &err));
  CHECK(!known && !found && size == 0);
  OK(walrusds_peek_size(handle, S("\xff"), &size, &found, &known, &err)); /* no key is like that */
  CHECK(known && !found);
  FAILS_ZEROED(BAD, "key is NULL", known,
               walrusds_peek_size(handle, NULL, 3, &size, &found, &known, &err));
  FAILS_ZEROED(BAD, "size is NULL", known,
               walrusds_peek_size(handle, S("/k"), NULL, &found, &known, &err));
  FAILS_ZEROED(BAD, "found is NULL", size,
               walrusds_peek_size(handle, S("/k"), &size, NULL, &known, &err));
  FAILS_ZEROED(BAD, "known is NULL", found,
               walrusds_peek_size(handle, S("/k"), &size, &found, NULL, &err));

  /* An answer from memory, and one for a key that can never be there, comes at once. */
  walrusds_queue queue = queue_new();
  walrusds_buf out;
  bool done;
  OK(walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, &found, &done, &err));
  CHECK(done && found && holds(out.data, out.len, "value"));
  walrusds_buf_free(&out);
  OK(walrusds_get_start(handle, NULL, S("\xff"), queue, 2, &out, &found, &done, &err));
  CHECK(done && !found && out.data == NULL);
  /* The queue has no further completion. */
  walrusds_call call = {0, 20, NULL};
  walrusds_completion c;
  size_t len;
  FAILS_ZEROED(WALRUSDS_DEADLINE_EXCEEDED, "20 ms", len,
               walrusds_queue_next(queue, &call, &c, 1, &len, &err));
  OK(walrusds_queue_close(queue, &err));
  close_ok(handle);
  FAILS_ZEROED(WALRUSDS_CLOSED, "closed", known,
               walrusds_peek_size(handle, S("/k"), &size, &found, &known, &err));
}

static void started_and_fetched(void) {
  walrusds_handle handle = open_new();
  walrusds_queue queue = queue_new();
  bool done;
  /* The value is copied before the call returns. */
  char value[32];
  snprintf(value, sizeof value, "%s", new_value());
  char *kept = strdup(value);
  walrusds_op ops[] = {{WALRUSDS_OP_PUT, S("/a"), S(value)}, {WALRUSDS_OP_DELETE, S("/b"), NULL, 0}};
  OK(walrusds_batch_start(handle, NULL, ops, 2, queue, UINT64_MAX, &done, &err));
  memset(value, 'x', strlen(value));
  CHECK(!done);
  CHECK(next(queue, WALRUSDS_OK).tag == UINT64_MAX);
  expect_text(handle, "/a", kept);
  /* A call without work is done at once. */
  OK(walrusds_batch_start(handle, NULL, NULL, 0, queue, 1, &done, &err));
  CHECK(done);

  /* The result comes at once or through the queue, and only once. */
  const char *keys[] = {"/unknown", "/a"};
  for (uint64_t tag = 2; tag < 4; tag++) {
    walrusds_completion c;
    memset(&c, 0, sizeof c);
    OK(walrusds_get_start(handle, NULL, S(keys[tag - 2]), queue, tag, &c.value, &c.found, &done, &err));
    if (!done) {
      CHECK(!c.found && c.value.data == NULL);
      c = next(queue, WALRUSDS_OK);
      CHECK_INT(c.tag, tag);
    }
    CHECK(c.found ? tag == 3 && holds(c.value.data, c.value.len, kept) : tag == 2);
    walrusds_buf_free(&c.value);
  }
  free(kept);
  OK(walrusds_queue_close(queue, &err));
  close_ok(handle);
}

static void refused_before_they_start(void) {
  walrusds_handle handle = open_new();
  walrusds_queue queue = queue_new(), none = 0;
  walrusds_buf out;
  walrusds_completion c;
  walrusds_op op = {7, S("/k"), S("v")};
  walrusds_call call = {0, 20, NULL};
  bool found, done;
  size_t len;
  FAILS_ZEROED(BAD, "queue", out,
               walrusds_get_start(handle, NULL, S("/k"), handle, 1, &out, &found, &done, &err));
  FAILS_ZEROED(BAD, "datastore", done,
               walrusds_get_start(queue, NULL, S("/k"), queue, 1, &out, &found, &done, &err));
  FAILS_ZEROED(BAD, "key is NULL", found,
               walrusds_get_start(handle, NULL, NULL, 1, queue, 1, &out, &found, &done, &err));
  FAILS_ZEROED(BAD, "out is NULL", done,
               walrusds_get_start(handle, NULL, S("/k"), queue, 1, NULL, &found, &done, &err));
  FAILS_ZEROED(BAD, "found is NULL", out,
               walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, NULL, &done, &err));
  FAILS_ZEROED(BAD, "done is NULL", out,
               walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, &found, NULL, &err));
  FAILS_ZEROED(BAD, "operation 0: kind is 7", done,
               walrusds_batch_start(handle, NULL, &op, 1, queue, 1, &done, &err));
  FAILS_ZEROED(BAD, "ops is NULL", done,
               walrusds_batch_start(handle, NULL, NULL, 1, queue, 1, &done, &err));
  op.kind = WALRUSDS_OP_PUT;
  CALL(BAD, "done is NULL", walrusds_batch_start(handle, NULL, &op, 1, queue, 1, NULL, &err));
  walrusds_op nul = {WALRUSDS_OP_PUT, bytes_of("/a\0b"), 4, S("v")};
  FAILS_ZEROED(BAD, "NUL byte", done,
               walrusds_batch_start(handle, NULL, &nul, 1, queue, 1, &done, &err));
  CALL(BAD, "out is NULL", walrusds_queue_new(NULL, &err));
  FAILS_ZEROED(BAD, "out is NULL", len, walrusds_queue_next(queue, NULL, NULL, 1, &len, &err));
  FAILS_ZEROED(BAD, "max is 0", len, walrusds_queue_next(queue, NULL, &c, 0, &len, &err));
  CALL(BAD, "len is NULL", walrusds_queue_next(queue, NULL, &c, 1, NULL, &err));
  CALL(BAD, "queue", walrusds_queue_next(none, NULL, &c, 1, &len, &err));
  CALL(BAD, "queue", walrusds_queue_close(handle, &err));

  /* Not even with a token that is cancelled already. */
  walrusds_call cancelled = {0, 0, NULL};
  OK(walrusds_cancel_new(&cancelled.cancel, &err));
  OK(walrusds_cancel(cancelled.cancel, &err));
  FAILS_ZEROED(WALRUSDS_CANCELED, "cancelled", done,
               walrusds_batch_start(handle, &cancelled, &op, 1, queue, 1, &done, &err));
  FAILS_ZEROED(WALRUSDS_CANCELED, "cancelled", done,
               walrusds_get_start(handle, &cancelled, S("/k"), queue, 1, &out, &found, &done, &err));
  FAILS_ZEROED(WALRUSDS_CANCELED, "cancelled", len,
               walrusds_queue_next(queue, &cancelled, &c, 1, &len, &err));
  OK(walrusds_cancel_free(cancelled.cancel, &err));
  CALL(WALRUSDS_DEADLINE_EXCEEDED, NULL, walrusds_queue_next(queue, &call, &c, 1, &len, &err));
  expect_text(handle, "/k", NULL);
  OK(walrusds_queue_close(queue, &err));
  close_ok(handle);
}

static void given_up(void) {
  walrusds_handle handle = open_slow(", \"blobCacheBytes\": -1");
  walrusds_queue queue = queue_new();
  OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  walrusds_call call = {0, 0, NULL}, late = {0, 50, NULL};
  bool done;
  OK(walrusds_cancel_new(&call.cancel, &err));
  walrusds_op op = {WALRUSDS_OP_PUT, S("/new"), S(new_value())};
  start_get(handle, &call, "/k", queue, 1);
  OK(walrusds_batch_start(handle, &call, &op, 1, queue, 2, &done, &err));
  CHECK(!done);
  sleep_ms(slow_ms / 8);
  int64_t before = now_ms();
  OK(walrusds_cancel(call.cancel, &err));
  CHECK(next(queue, WALRUSDS_CANCELED).tag + next(queue, WALRUSDS_CANCELED).tag == 3);
  CHECK(now_ms() - before <= slow_ms / 2);
  OK(walrusds_cancel_free(call.cancel, &err));
  before = now_ms();
  start_get(handle, &late, "/k", queue, 3);
  CHECK_INT(next(queue, WALRUSDS_DEADLINE_EXCEEDED).tag, 3);
  CHECK(now_ms() - before >= 50 && now_ms() - before <= slow_ms / 2);
  expect_text(handle, "/new", NULL);
  OK(walrusds_queue_close(queue, &err));
  close_ok(handle);
}

struct fetcher {
  walrusds_queue queue;
  uint64_t tags; /* a bit for each */
  size_t count;
  int32_t ended;
};

/* Fetches until the queue is closed. */
static void *fetch(void *arg) {
  struct fetcher *f = arg;
  for (;;) {
    walrusds_completion ended[3];
    size_t len;
    f->ended = walrusds_queue_next(f->queue, NULL, ended, 3, &len, NULL);
    if (f->ended != WALRUSDS_OK) return NULL;
    for (size_t i = 0; i < len; i++) {
      CHECK_INT(ended[i].error.code, WALRUSDS_OK);
      CHECK(ended[i].found && holds(ended[i].value.data, ended[i].value.len, "value"));
      CHECK(ended[i].tag < 64 && !(f->tags >> ended[i].tag & 1));
      f->tags |= (uint64_t)1 << ended[i].tag;
      f->count++;
      walrusds_buf_free(&ended[i].value);
      walrusds_error_free(&ended[i].error);
    }
  }
}

/* Closing the datastore waits for what was started, and it is delivered. */
static void closing_with_calls_in_flight(void) {
  walrusds_handle handle = open_slow(", \"blobCacheBytes\": -1");
  enum { COUNT = 60, FETCHERS = 2 };
  OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  struct fetcher fetchers[FETCHERS];
  pthread_t threads[FETCHERS];
  walrusds_queue queue = queue_new();
  for (int i = 0; i < FETCHERS; i++) {
    fetchers[i] = (struct fetcher){.queue = queue};
    threads[i] = start(fetch, &fetchers[i]);
  }
  for (uint64_t tag = 0; tag < COUNT; tag++) start_get(handle, NULL, "/k", queue, tag);
  close_ok(handle);
  walrusds_buf out;
  bool found, done;
  CALL(WALRUSDS_CLOSED, "closed",
       walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, &found, &done, &err));
  sleep_ms(200); /* the last of them may be under way between the datastore and the queue */
  OK(walrusds_queue_close(queue, &err));
  uint64_t all = 0;
  size_t count = 0;
  for (int i = 0; i < FETCHERS; i++) {
    join(threads[i]);
    CHECK_INT(fetchers[i].ended, WALRUSDS_CLOSED);
    all |= fetchers[i].tags;
    count += fetchers[i].count;
  }
  CHECK_INT(count, COUNT);
  CHECK(all == ((uint64_t)1 << COUNT) - 1);
}

/* Closing the queue frees completions that were not fetched and those that come later. */
static void closing_the_queue(void) {
  walrusds_handle handle = open_slow(", \"blobCacheBytes\": -1");
  OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  walrusds_queue queue = queue_new();
  struct fetcher fetcher = {.queue = queue};
  pthread_t thread = start(fetch, &fetcher);
  for (uint64_t tag = 0; tag < 8; tag++) start_get(handle, NULL, "/k", queue, tag);
  OK(walrusds_queue_close(queue, &err));
  join(thread);
  CHECK_INT(fetcher.ended, WALRUSDS_CLOSED);
  CALL(WALRUSDS_CLOSED, "queue is closed", walrusds_queue_close(queue, &err));
  walrusds_buf out;
  walrusds_completion c;
  bool found, done;
  size_t len;
  CALL(WALRUSDS_CLOSED, "queue is closed", walrusds_queue_next(queue, NULL, &c, 1, &len, &err));
  FAILS_ZEROED(WALRUSDS_CLOSED, "queue is closed", done,
               walrusds_get_start(handle, NULL, S("/k"), queue, 1, &out, &found, &done, &err));

  queue = queue_new();
  start_get(handle, NULL, "/k", queue, 1);
  start_get(handle, NULL, "/k", queue, 2);
  close_ok(handle);
  OK(walrusds_queue_close(queue, &err)); /* with outcomes that nobody fetched */
}

const struct test queue_tests[] = {
    {"many keys at once", many_keys_at_once, 1},
    {"answers from memory", from_memory, 1},
    {"calls that are started", started_and_fetched, 1},
    {"calls that are refused before they start", refused_before_they_start, 1},
    {"started calls that are given up", given_up, 1},
    {"closing with started calls in flight", closing_with_calls_in_flight, 1},
    {"closing the queue", closing_the_queue, 1},
    {NULL, NULL, 0},
};
