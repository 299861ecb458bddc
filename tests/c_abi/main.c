/* Tests of the C ABI, run by scripts/c-abi-test.sh.
 *
 * main --net URL --slow URL --slow-ms N --dir DIR [--quick] [test...]
 *
 * The library prints nothing on standard output: a test fails if text appears there. */
#include "harness.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

const char *net_url, *slow_url, *work_dir;
int slow_ms, prompt_ms = 100, quick;

static FILE *report;
static const char *running;
static atomic_int checks_failed;

void failed(const char *file, int line, const char *format, ...) {
  char message[2048];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  const char *slash = strrchr(file, '/');
  if (atomic_fetch_add(&checks_failed, 1) < 20)
    fprintf(report, "    %s: %s:%d: %s\n", running, slash != NULL ? slash + 1 : file, line, message);
  fflush(report);
}

static int wanted(const struct test *test, char **names, int count) {
  if (count == 0) return !quick || test->in_quick;
  for (int i = 0; i < count; i++)
    if (strstr(test->name, names[i]) != NULL) return 1;
  return 0;
}

int main(int argc, char **argv) {
  int at = 1;
  for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
    const char *value = at + 1 < argc ? argv[at + 1] : "";
    if (strcmp(argv[at], "--quick") == 0) {
      quick = 1;
      continue;
    }
    if (strcmp(argv[at], "--net") == 0) net_url = value;
    if (strcmp(argv[at], "--slow") == 0) slow_url = value;
    if (strcmp(argv[at], "--slow-ms") == 0) slow_ms = atoi(value);
    if (strcmp(argv[at], "--dir") == 0) work_dir = value;
    at++;
  }
  if (net_url == NULL || slow_url == NULL || work_dir == NULL || slow_ms < 1000) {
    fprintf(stderr, "usage: %s --net URL --slow URL --slow-ms N --dir DIR [--quick] [test...]\n",
            argv[0]);
    return 2;
  }
  /* Under valgrind, which runs one thread at a time and all of them slowly. */
  if (quick) prompt_ms = slow_ms / 2;

  int real_stdout = dup(STDOUT_FILENO);
  int kept = open(text("%s/stdout", work_dir), O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (real_stdout < 0 || kept < 0 || dup2(kept, STDOUT_FILENO) < 0) return 2;
  report = fdopen(real_stdout, "w");
  if (report == NULL) return 2;

  const struct test *groups[] = {open_tests,  value_tests,  argument_tests, batch_tests,
                                 query_tests, cancel_tests, queue_tests,    thread_tests,
                                 signal_tests, panic_tests};
  int passes = 0, failures = 0;
  for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
    for (const struct test *test = groups[g]; test->name != NULL; test++) {
      if (!wanted(test, argv + at, argc - at)) continue;
      running = test->name;
      atomic_store(&checks_failed, 0);
      int64_t began = now_ms();
      test->run();
      struct stat printed;
      fflush(stdout);
      if (fstat(kept, &printed) != 0 || printed.st_size != 0) {
        failed(__FILE__, __LINE__, "something was written to stdout");
        if (ftruncate(kept, 0) != 0) return 2;
      }
      int bad = atomic_load(&checks_failed) > 0;
      *(bad ? &failures : &passes) += 1;
      fprintf(report, "%s %s (%lld ms)\n", bad ? "FAILED" : "ok    ", test->name,
              (long long)(now_ms() - began));
      fflush(report);
    }
  }
  fprintf(report, "%d passed, %d failed\n", passes, failures);
  fclose(report);
  close(kept);
  return failures > 0 || passes == 0;
}
