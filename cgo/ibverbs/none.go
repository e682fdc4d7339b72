//go:build !(rdma && cgo && linux)

package ibverbs

import (
	"errors"
	"fmt"
	"unsafe"
)

// Built is true when verbs are compiled in.
const Built = false

// Objects of the library.
type (
	Device      struct{}
	Context     struct{}
	PD          struct{}
	MR          struct{}
	CompChannel struct{}
	CQ          struct{}
	QP          struct{}
	Lib         struct{}
	DeviceList  struct{}
)

var errNone = fmt.Errorf("ibverbs: this binary was built without RDMA (tag rdma, cgo, Linux, headers of libibverbs): %w", errors.ErrUnsupported)

func Load(string) (*Lib, error)        { return nil, errNone }
func FromTable(unsafe.Pointer) *Lib    { return &Lib{} }
func (DeviceList) Devices() []*Device  { return nil }
func (*Context) AsyncFD() int          { return -1 }
func (*MR) LKey() uint32               { return 0 }
func (*MR) RKey() uint32               { return 0 }
func (*CompChannel) FD() int           { return -1 }
func (*CQ) CQE() int                   { return 0 }
func (*QP) Num() uint32                { return 0 }
func (*Lib) FreeDeviceList(DeviceList) {}
func (*Lib) AckCQEvents(*CQ, int)      {}
func (*Lib) AckAsyncEvent(*AsyncEvent) {}

func (*Lib) GetDeviceList() (DeviceList, error)                     { return DeviceList{}, errNone }
func (*Lib) GetDeviceName(*Device) string                           { return "" }
func (*Lib) OpenDevice(*Device) (*Context, error)                   { return nil, errNone }
func (*Lib) CloseDevice(*Context) error                             { return errNone }
func (*Lib) QueryDevice(*Context) (DeviceAttr, error)               { return DeviceAttr{}, errNone }
func (*Lib) QueryPort(*Context, int) (PortAttr, error)              { return PortAttr{}, errNone }
func (*Lib) QueryGIDTable(*Context, []GIDEntry) (int, error)        { return 0, errNone }
func (*Lib) AllocPD(*Context) (*PD, error)                          { return nil, errNone }
func (*Lib) DeallocPD(*PD) error                                    { return errNone }
func (*Lib) RegMR(*PD, unsafe.Pointer, int, uint32) (*MR, error)    { return nil, errNone }
func (*Lib) DeregMR(*MR) error                                      { return errNone }
func (*Lib) CreateCompChannel(*Context) (*CompChannel, error)       { return nil, errNone }
func (*Lib) DestroyCompChannel(*CompChannel) error                  { return errNone }
func (*Lib) CreateCQ(*Context, int, *CompChannel, int) (*CQ, error) { return nil, errNone }
func (*Lib) DestroyCQ(*CQ) error                                    { return errNone }
func (*Lib) GetCQEvent(*CompChannel) error                          { return errNone }
func (*Lib) CreateQP(*PD, *CQ, *CQ, *QPCap) (*QP, error)            { return nil, errNone }
func (*Lib) ModifyQP(*QP, *QPAttr, uint32) error                    { return errNone }
func (*Lib) QueryQP(*QP) (uint32, error)                            { return 0, errNone }
func (*Lib) DestroyQP(*QP) error                                    { return errNone }
func (*Lib) GetAsyncEvent(*Context, *AsyncEvent) error              { return errNone }
func PollCQ(*CQ, []WC) (int, error)                                 { return 0, errNone }
func SpinCQ(*CQ, []WC, int64) (int, error)                          { return 0, errNone }
func ReqNotifyCQ(*CQ, bool) error                                   { return errNone }
func PostSend(*QP, []SendWR, []SGE) (int, error)                    { return 0, errNone }
func PostRecv(*QP, []RecvWR, []SGE) (int, error)                    { return 0, errNone }
func (*AsyncEvent) QPNum() uint32                                   { return 0 }
func (*AsyncEvent) Is(*CQ) bool                                     { return false }
