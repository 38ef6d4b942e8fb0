// Prints the frequency of this machine's time-stamp counter in kHz, as measured against the monotonic clock.
//
// QEMU's emulated CPUs have the host's counter. A guest measures it against the emulated timer when it boots, and on a busy host
// is wrong by whole factors, so that its clock runs away. hack/emulated-machine tells it instead.
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct instant {
  uint64_t ticks, ns;
};

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_RAW, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The two clocks read as close to each other as it gets in many tries: of those in between which nothing else ran.
static struct instant instant(void) {
  struct instant best = {0, 0};
  uint64_t least = UINT64_MAX;
  for (int i = 0; i < 1000; i++) {
    uint64_t before = __rdtsc();
    uint64_t ns = now_ns();
    uint64_t after = __rdtsc();
    if (after - before < least) {
      least = after - before;
      best = (struct instant){before + (after - before) / 2, ns};
    }
  }
  return best;
}

int main(void) {
  struct instant first = instant();
  struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};
  nanosleep(&pause, NULL);
  struct instant last = instant();
  printf("%llu\n", (unsigned long long)((double)(last.ticks - first.ticks) * 1e6 / (double)(last.ns - first.ns)));
}
