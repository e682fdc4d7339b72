package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestHandlerServesWhatWasObserved(t *testing.T) {
	Begin(Server, "t1")
	Observe(Server, "prepare", "t1", OK, time.Now(), 4096)
	Observe(Server, "prepare", "t1", "stale tag", time.Now(), 0)
	remove := AddSource(func(emit Emit) { emit("rfs_raft_lag", 3, "1") })
	text := get(t)
	for _, want := range []string{
		`rfs_requests_total{op="prepare",side="server",status="ok",target="t1"} 1`,
		`rfs_requests_total{op="prepare",side="server",status="stale tag",target="t1"} 1`,
		`rfs_request_bytes_total{op="prepare",side="server",target="t1"} 4096`,
		`rfs_request_seconds_count{op="prepare",side="server",target="t1"} 2`,
		`rfs_requests_in_flight{side="server",target="t1"} 1`,
		`rfs_raft_lag{replica="1"} 3`,
		"go_goroutines",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	remove()
	if strings.Contains(get(t), "rfs_raft_lag{") {
		t.Error("a source that was removed is still asked")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	start := time.Now()
	if n := testing.AllocsPerRun(100, func() { Begin(Server, "t2").Dec(); Observe(Server, "read", "t2", OK, start, 1) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}
