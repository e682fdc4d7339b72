package arena

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// mapMemory maps n bytes, a multiple of 4 MiB, on 2 MiB boundaries and faults
// them in: a fault on the data path costs more than the copy. It takes reserved
// huge pages, else asks for transparent ones.
func mapMemory(n int, huge bool) (mem []byte, isHuge bool, err error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if huge {
		// The kernel reserves the pages here, so that no later touch can fail.
		if mem, err = unix.Mmap(-1, 0, n, prot, flags|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB|unix.MAP_POPULATE); err == nil {
			return mem, true, nil
		}
	}
	whole, err := unix.MmapPtr(-1, 0, nil, uintptr(n+hugePage), prot, flags)
	if err != nil {
		return nil, false, err
	}
	base := trim(whole, n)
	mem = unsafe.Slice((*byte)(base), n)
	advice := unix.MADV_NOHUGEPAGE
	if huge {
		advice = unix.MADV_HUGEPAGE
	}
	isHuge = unix.Madvise(mem, advice) == nil && huge
	if err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE); err == unix.EINVAL {
		for i := 0; i < n; i += 4096 { // a kernel before 5.14
			mem[i] = 0
		}
	} else if err != nil {
		_ = unmap(mem)
		return nil, false, fmt.Errorf("fault in: %w", err)
	}
	return mem, isHuge, nil
}

// trim unmaps what is outside the first 2 MiB-aligned n bytes, and returns their start.
func trim(whole unsafe.Pointer, n int) unsafe.Pointer {
	head := -uintptr(whole) & (hugePage - 1)
	base := unsafe.Add(whole, head)
	if head > 0 {
		_ = unix.MunmapPtr(whole, head)
	}
	if tail := uintptr(hugePage) - head; tail > 0 {
		_ = unix.MunmapPtr(unsafe.Add(base, n), tail)
	}
	return base
}

func unmap(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}
