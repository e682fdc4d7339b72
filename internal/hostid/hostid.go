// Package hostid names the running kernel, so that two processes can tell
// whether they share a host, and so can meet on a Unix socket.
package hostid

import (
	"os"
	"strings"
	"sync"
)

// Get returns the kernel's boot id, or "" where there is none. It differs
// between machines cloned from one image, which /etc/machine-id does not.
var Get = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
