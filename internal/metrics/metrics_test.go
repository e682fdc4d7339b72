package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHandlerServesWhatWasObserved(t *testing.T) {
	g := Begin(Server, "t1")
	Observe(Server, "prepare", "t1", "ok", time.Now(), 4096)
	refreshed := false
	w := httptest.NewRecorder()
	Handler(func() { refreshed = true; RaftLag.WithLabelValues("1").Set(3) }).
		ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	g.Dec()
	if !refreshed {
		t.Error("the gauges were not refreshed")
	}
	for _, want := range []string{
		`rfs_requests_total{op="prepare",side="server",status="ok",target="t1"} 1`,
		`rfs_request_bytes_total{op="prepare",side="server",target="t1"} 4096`,
		`rfs_request_seconds_count{op="prepare",side="server",target="t1"} 1`,
		`rfs_requests_in_flight{side="server",target="t1"} 1`,
		`rfs_raft_lag{replica="1"} 3`,
		"go_goroutines",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}
